"""The memory that a worker's loaded models share, and what the KV cache of each of them gets of it."""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from flashgen.checkpoint_sizes import CheckpointSizes
from flashgen.quantities import binary_bytes, human_bytes
from flashgen.sizing import EngineSizes, ResolvedResources, weight_bound

# Python, torch and transformers, and on a card the driver's context; a small worker gives them half at most.
PROCESS_BYTES = 2**30


class MemoryBudget(NamedTuple):
    """For the weights, KV caches and buffers of all loaded models together."""

    num_bytes: int
    reason: str


class VolumeSize(NamedTuple):
    """Of the volume that holds a server's weights."""

    num_bytes: int
    reason: str


class ModelDemand(NamedTuple):
    """What one model of a server asks of its memory."""

    keeps_kv_cache: bool

    # `None` where the checkpoint could not be counted.
    sizes: CheckpointSizes | None

    # Whether the spec says how long a sequence may be: then one must fit. Else the KV cache sets the limit.
    has_max_context: bool

    is_preloaded: bool

    # Of the models that guess for it and are loaded with it; `None` as above.
    drafts: tuple[CheckpointSizes | None, ...] = ()

    @property
    def is_counted(self) -> bool:
        """Whether all of its checkpoints could be counted."""
        return None not in (self.sizes, *self.drafts)

    @property
    def least_kv_bytes(self) -> int:
        """Of its own KV cache, without which it cannot serve."""
        if self.sizes is None:
            return 0
        return self.sizes.sequence_kv_bytes if self.has_max_context else self.sizes.block_kv_bytes

    @property
    def weight_bytes(self) -> int:
        """Of its own weights and of those of its drafts."""
        return sum(sizes.weight_bytes for sizes in self._loaded)

    def fixed_bytes(self, engine: EngineSizes) -> int:
        """Weights and buffers."""
        return self.weight_bytes + sum(
            sizes.buffer_bytes(max_num_seqs=engine.max_num_seqs, max_num_batched_tokens=engine.max_num_batched_tokens)
            for sizes in self._loaded
        )

    def loaded_bytes(self, engine: EngineSizes) -> int:
        """All that it takes when it is loaded."""
        if self.sizes is None:
            return 0
        own_bytes = self.sizes.kv_cache_bytes(engine.kv_cache_bytes, max_num_seqs=engine.max_num_seqs)
        return self.fixed_bytes(engine) + self.all_kv_bytes(own_bytes)

    def all_kv_bytes(self, own_bytes: int) -> int:
        """What all of its KV caches take if its own takes so much: those of its drafts have as many blocks."""
        block_bytes = self.sizes.block_kv_bytes if self.sizes is not None else 0
        return own_bytes // block_bytes * self._block_kv_bytes if block_bytes else own_bytes

    def own_kv_bytes(self, all_bytes: int) -> int:
        """What its own KV cache may take if all of them together may take so much."""
        block_bytes = self.sizes.block_kv_bytes if self.sizes is not None else 0
        return all_bytes * block_bytes // self._block_kv_bytes if block_bytes else all_bytes

    @property
    def _loaded(self) -> list[CheckpointSizes]:
        """Of all checkpoints that were counted; nothing is said of a model whose own was not."""
        return [sizes for sizes in (self.sizes, *self.drafts) if sizes is not None] if self.sizes is not None else []

    @property
    def _block_kv_bytes(self) -> int:
        return sum(sizes.block_kv_bytes for sizes in self._loaded)


def memory_budget(resources: ResolvedResources, *, pool_bytes: int = 0) -> MemoryBudget:
    """Of the card that the server's models are on, or of the worker's memory where they are on none.

    Args:
        resources: of the worker.
        pool_bytes: of its memory, for the weights of models that are not loaded.
    """
    bound, name = weight_bound(resources)
    process_bytes = min(PROCESS_BYTES, bound // 2)
    reason = f"the {human_bytes(bound)} of {name} without {human_bytes(process_bytes)} for the process itself"
    if not pool_bytes or resources.gpus:
        return MemoryBudget(bound - process_bytes, reason)
    left = max(bound - process_bytes - pool_bytes, 1)
    return MemoryBudget(left, f"{reason} and {human_bytes(pool_bytes)} for `weights.pool`")


def volume_size(
    resources: ResolvedResources, models: Sequence[CheckpointSizes | None], *, num_served: int, max_loaded: int
) -> VolumeSize:
    """For the weights of all models, so that a new revision fits beside the old one.

    Args:
        resources: of the worker.
        models: sizes of the server's models, and of those that guess for them.
        num_served: models that callers reach; the others are loaded with them.
        max_loaded: of these, how many fit the memory together.
    """
    counted = [sizes for sizes in models if sizes is not None]
    if len(counted) == len(models):
        files, prepared = sum(sizes.file_bytes for sizes in counted), sum(sizes.weight_bytes for sizes in counted)
        gibibytes = ceil(2 * (files + prepared) / 2**30)
        reason = f"twice {binary_bytes(files)} of checkpoints and {binary_bytes(prepared)} of prepared weights"
        return VolumeSize(gibibytes * 2**30, f"In whole GiB, {reason}")
    memory = max(resources.memory_bytes, (resources.gpu_memory_bytes or 0) * resources.gpus)
    fillings = ceil(num_served / max_loaded)
    times = f" times {fillings}, as {max_loaded} of {num_served} models fit at once" if fillings > 1 else ""
    reason = (
        f"Twice the larger of the worker's memory and its cards' memory{times}: the weights were not here to be counted"
    )
    return VolumeSize(2 * memory * fillings, reason)


def with_kv_cache(
    engine: EngineSizes,
    resources: ResolvedResources,
    budget: MemoryBudget,
    models: Sequence[ModelDemand],
    *,
    max_loaded: int,
    declared: int | None,
) -> EngineSizes:
    """The sizes with the KV cache of each loaded model: as declared, else a share of the memory that leaves room."""
    if not any(model.keeps_kv_cache for model in models):
        return engine
    if declared is not None:
        return engine._replace(kv_cache_bytes=declared, kv_cache_reason="as `engine.kv_cache.memory` says")
    share, reason = _share(resources, models, max_loaded)
    least = max(model.least_kv_bytes for model in models)
    room = _room(engine, budget, models)
    if room < share:
        share, reason = room, f"what weights and buffers leave of the {human_bytes(budget.num_bytes)} in memory_bytes"
    if least > share:
        share, reason = least, "one sequence of the longest `max_context`"
    return engine._replace(kv_cache_bytes=share, kv_cache_reason=reason)


def _share(resources: ResolvedResources, models: Sequence[ModelDemand], max_loaded: int) -> tuple[int, str]:
    bound, name = weight_bound(resources)
    assumed = " assumed" if resources.gpus and resources.gpu_memory_bytes is None else ""
    shared = f", shared by the {max_loaded} models that can be loaded at once" if max_loaded > 1 else ""
    is_counted = all(model.is_counted for model in models)
    uncounted = "" if is_counted else "; weights that are not here to be counted may leave less"
    return bound // 4 // max_loaded, f"a quarter of the {human_bytes(bound)}{assumed} of {name}{shared}{uncounted}"


def _room(engine: EngineSizes, budget: MemoryBudget, models: Sequence[ModelDemand]) -> int:
    """For each KV cache: beside any one model alone, and beside those that are loaded at start together."""
    rooms = [model.own_kv_bytes(budget.num_bytes - model.fixed_bytes(engine)) for model in models]
    together = [model for model in models if model.is_preloaded]
    if num_caches := sum(model.keeps_kv_cache for model in together):
        left = budget.num_bytes - sum(model.fixed_bytes(engine) for model in together)
        rooms += [model.own_kv_bytes(left // num_caches) for model in together]
    return max(min(rooms), 0)
