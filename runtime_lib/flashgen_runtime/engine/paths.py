"""Chooses how a checkpoint runs: by our own decoder, by transformers' class on flat batches, or by the class as it is.

No option decides, the checkpoint does: what our decoder knows is native, what the probe finds right is paged, all else
is plain, which is slower and always right.
"""

import logging
from pathlib import Path
from typing import Any

from flashgen_runtime import timings
from flashgen_runtime.config import EngineConfig, ModelConfig, Quantization
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.native_config import reason_against
from flashgen_runtime.engine.packers import SurgeryFile
from flashgen_runtime.errors import ConfigError
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.checkpoint import read_json
from flashgen_runtime.logs import fields
from flashgen_runtime.quantization.config import check_option, parse_quantization

log = logging.getLogger(__name__)

NO_CODES = "transformers' classes take no codes"


def load_causal_model(
    path: Path, config: ModelConfig, engine: EngineConfig, *, access: WeightAccess | None = None
) -> CausalModel:
    """Loads a checkpoint on the fastest path that it takes; `description` says which and why.

    Args:
        path: the checkpoint's folder.
        config: the model.
        engine: limits of batches.
        access: where prepared weights lie; `None` packs the checkpoint into private memory.

    Raises:
        WeightsError: a file is missing, broken or lies.
        DeviceError: there is no such device.
        ConfigError: the path does not have what the configuration asks for.
    """
    reason = _reason_against_native(read_json(path / "config.json"), config)
    if reason is None:
        model = _load_native(path, config, engine, access)
    else:
        model = _load_transformers(path, config, engine, reason, access)
    description = model.description
    if engine.deterministic and not description.is_batch_invariant:
        problem = (
            f"model `{config.id}` cannot be deterministic: on the path `{description.path}` with kernels "
            f"`{description.kernels}` a request's results depend on what else is in the batch"
        )
        raise ConfigError("engine.deterministic", problem)
    return model


def position_limit(path: Path, model: CausalModel) -> int | None:
    """Tokens that a checkpoint has positions for; `None` where any number will do."""
    if model.description.path == "native":
        limit: int | None = read_json(path / "config.json").get("max_position_embeddings")
        return limit
    # Deferred: see `_load_transformers`.
    from flashgen_runtime.loader.materialize import read_config

    return getattr(read_config(path).get_text_config(), "max_position_embeddings", None)


def _reason_against_native(tree: dict[str, Any], config: ModelConfig) -> str | None:
    if config.device != "cpu":
        return f"the native decoder runs on the cpu, not on `{config.device}`"
    if current_isa() is None:
        return "there are no kernels for this processor"
    reason = reason_against(tree)
    return None if reason is None else f"the native decoder does not run {reason}"


def _load_native(path: Path, config: ModelConfig, engine: EngineConfig, access: WeightAccess | None) -> CausalModel:
    # Deferred: an interface that only one of the paths needs.
    with timings.stage("imports"):
        from flashgen_runtime.engine.native_decoder import load_native

    return load_native(
        path,
        dtype=config.dtype,
        quantization=config.quantization,
        kv_cache_dtype=engine.kv_cache_dtype,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        access=access,
    )


def _load_transformers(
    path: Path, config: ModelConfig, engine: EngineConfig, reason: str, access: WeightAccess | None
) -> CausalModel:
    # Deferred: importing transformers' model classes takes seconds, which native models do not need.
    with timings.stage("imports"):
        from flashgen_runtime.engine.model_runner import PagedModel
        from flashgen_runtime.engine.plain_runner import PlainModel
        from flashgen_runtime.engine.probe import probe
        from flashgen_runtime.loader.materialize import read_config

    with timings.stage("skeleton"):
        finding = probe(read_config(path))
    quantization = _asked_quantization(path, config)
    if finding.not_paged and engine.kv_cache_dtype == "int8":
        raise ConfigError(
            "engine.kv_cache.dtype", f"`int8` needs a paged model, and this one is not: {finding.not_paged}"
        )
    model = _load_module(path, config, access)
    if finding.not_paged:
        plain_reason = f"transformers' class does not run on flat batches: {finding.not_paged}"
        return PlainModel(model, path_reason=plain_reason, quantization=quantization)
    if finding.not_replaced:
        log.warning("kernels do not replace its modules", extra=fields(model=config.id, reason=finding.not_replaced))
    file = _surgery_file(model, quantization, access) if not finding.not_replaced else None
    packer = file.packer() if file is not None else None
    paged = PagedModel(
        model,
        quantization=quantization,
        kv_cache_dtype=engine.kv_cache_dtype,
        path_reason=reason,
        with_kernels=not finding.not_replaced,
        can_be_invariant=finding.is_invariant,
        packer=packer,
    )
    if file is not None and packer is not None:
        file.keep(packer)
    if paged.left_to_torch:
        log.info("torch computes a part of it", extra=fields(model=config.id, modules=", ".join(paged.left_to_torch)))
    return paged


def _asked_quantization(path: Path, config: ModelConfig) -> Quantization | None:
    """What the linear layers are brought to; those of a quantised checkpoint are floats here, and stay so."""
    found = parse_quantization(path, read_json(path / "config.json"))
    if found is None:
        return config.quantization
    check_option(found, config.quantization, path)
    log.info("quantised layers run as floats", extra=fields(model=config.id, layers="all", reason=NO_CODES))
    return None


def _load_module(path: Path, config: ModelConfig, access: WeightAccess | None) -> LoadedModel:
    # Deferred: see `_load_transformers`.
    from flashgen_runtime.loader.materialize import load_model

    if access is None:
        return load_model(path, dtype=config.dtype, device=config.device)
    access.check_checkpoint(path)
    return load_model(path, dtype=config.dtype, device=config.device, open_file=access.open, threads=access.threads)


def _surgery_file(
    model: LoadedModel, quantization: Quantization | None, access: WeightAccess | None
) -> SurgeryFile | None:
    """Where the packed layers are kept; `None` where there are none, or no place for them."""
    if access is None or model.device.type != "cpu" or current_isa() is None:
        return None
    return SurgeryFile(model.path, dtype=model.dtype, quantization=quantization, access=access)
