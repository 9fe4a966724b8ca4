"""Part of `stages.resolve`: how a server's weights come into memory, and which of its models are there."""

from collections.abc import Mapping, Sequence

from flashgen import sizing
from flashgen.resolved import ResolvedModel, SwapSettings, WeightSettings
from flashgen.sizing import ResolvedResources
from flashgen.spec import SwapSpec, WeightsSpec
from flashgen.user_text import UserText

# Requests for weights that are under way at once: fewer leave a disk idle, more gain nothing.
READING_THREADS = 4


def weight_settings(declared: WeightsSpec) -> WeightSettings:
    """As the spec says, else files of the store mapped, and their sizes checked."""
    is_declared = declared.threads is not None
    return WeightSettings(
        path=declared.path,
        loader=declared.loader or "auto",
        threads=declared.threads if declared.threads is not None else READING_THREADS,
        threads_reason="as `weights.threads` says" if is_declared else "as many as keep a disk busy",
        host_cache_bytes=declared.pool_bytes,
        keep_in_ram=declared.keep_in_ram if declared.keep_in_ram is not None else True,
        verify=declared.verify or "size",
    )


def file_bytes(models: Sequence[ResolvedModel]) -> int | None:
    """Of all files with weights of these models and their drafts; `None` where one could not be counted."""
    checkpoints = [each for model in models for each in (model, *model.drafts)]
    sizes = [checkpoint.sizes for checkpoint in checkpoints if checkpoint.sizes is not None]
    return sum(size.file_bytes for size in sizes) if len(sizes) == len(checkpoints) else None


def swap_settings(
    declared: SwapSpec,
    models: Sequence[ResolvedModel],
    *,
    ids: Mapping[str, UserText],
    resources: ResolvedResources,
) -> SwapSettings:
    """As the spec says, else all models are loaded at start and stay.

    Args:
        declared: what `validate` took.
        models: of the server.
        ids: of the same models, by the names that the spec has for them.
        resources: of the server.
    """
    max_loaded = declared.max_loaded or len(models)
    preload = tuple(model.id for model in models[:max_loaded])
    if declared.preload is not None:
        preload = tuple(ids[name] for name in declared.preload)
    sizes = [size for model in models if (size := file_bytes([model])) is not None]
    largest = max(sizes) if len(sizes) == len(models) else None
    seconds, reason = sizing.load_timeout(resources, file_bytes=largest)
    return SwapSettings(
        max_loaded=max_loaded,
        evict=declared.evict or "lru",
        idle_timeout_seconds=declared.idle_timeout_seconds,
        preload=preload,
        load_timeout_seconds=seconds,
        load_timeout_reason=reason,
    )
