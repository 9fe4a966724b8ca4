"""Chooses how an encoder runs: by our own class where it fits, else by transformers' class."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from flashgen_runtime.config import EngineConfig, ModelConfig
from flashgen_runtime.engine.causal_model import ModelDescription
from flashgen_runtime.engine.native_config import UnsupportedConfigError
from flashgen_runtime.engine.native_encoder import load_native_encoder
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.sentence_transformers import read_pooling
from flashgen_runtime.logs import fields

log = logging.getLogger(__name__)


class TextEncoder(Protocol):
    """Turns token ids into unit vectors."""

    @property
    def description(self) -> ModelDescription:
        """How it runs."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this number."""

    @property
    def num_positions(self) -> int | None:
        """Tokens of the longest text; `None` where any number will do."""

    def encode(self, sequences: Sequence[Sequence[int]]) -> list[bytes]:
        """One vector for each sequence, in order: little-endian float32 values, of length 1 as a vector.

        Sequences of similar length stand together at best.
        """

    def close(self) -> None:
        """Gives back all memory; there are no calls afterwards."""


def load_encoder(
    path: Path, config: ModelConfig, engine: EngineConfig, *, access: WeightAccess | None = None
) -> TextEncoder:
    """Loads an encoder's checkpoint on the fastest path that it takes, and logs which and why.

    Args:
        path: the checkpoint's folder.
        config: the model.
        engine: limits of batches.
        access: where prepared weights lie; `None` packs the checkpoint into private memory.

    Raises:
        WeightsError: a file is missing, broken or lies.
        DeviceError: there is no such device.
    """
    encoder = _load(path, config, engine, access)
    description = encoder.description
    log.info(
        "path chosen",
        extra=fields(
            model=config.id,
            path=description.path,
            reason=description.path_reason,
            dtype=description.dtype,
            quantization=description.quantization,
            kernels=description.kernels,
        ),
    )
    return encoder


def _load(path: Path, config: ModelConfig, engine: EngineConfig, access: WeightAccess | None) -> TextEncoder:
    pooling = read_pooling(path)
    if config.device != "cpu":
        reason = f"the native encoder runs on the cpu, not on `{config.device}`"
    elif current_isa() is None:
        reason = "there are no kernels for this processor"
    else:
        try:
            return load_native_encoder(
                path,
                dtype=config.dtype,
                quantization=config.quantization,
                pooling=pooling,
                max_num_batched_tokens=engine.max_num_batched_tokens,
                access=access,
            )
        except UnsupportedConfigError as error:
            reason = f"the native encoder does not run {error}"

    # Deferred: importing transformers' model classes takes seconds, which native models do not need.
    from flashgen_runtime.engine.encoder import Encoder
    from flashgen_runtime.loader.materialize import load_model

    options: dict[str, Any] = {} if access is None else {"open_file": access.open, "threads": access.threads}
    model = load_model(path, dtype=config.dtype, device=config.device, **options)
    return Encoder(model, pooling=pooling, path_reason=reason)
