"""Runs a transformers encoder on flat batches without padding and pools each sequence to one vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from flashgen_runtime.engine.attention import ENCODER_ATTENTION, attending
from flashgen_runtime.engine.causal_model import ModelDescription
from flashgen_runtime.engine.native_config import dtype_name
from flashgen_runtime.engine.pooling import Pooling, pool
from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.quiet import quiet_transformers


class Encoder:
    """Turns token ids into unit vectors; each call of `encode` is one forward pass.

    Args:
        model: with a class that attends through transformers' interface.
        pooling: how the vectors of a text's tokens become one.
        path_reason: why the model does not take a faster path.
    """

    def __init__(self, model: LoadedModel, *, pooling: Pooling, path_reason: str = "") -> None:
        self._model = model
        self._pooling: Pooling = pooling
        self._path_reason = path_reason
        module: Any = model.module
        with quiet_transformers():
            module.set_attn_implementation(ENCODER_ATTENTION)

    @property
    def description(self) -> ModelDescription:
        """How it runs; `plain` is transformers' class."""
        return ModelDescription(
            path="plain",
            path_reason=self._path_reason,
            dtype=dtype_name(self._model.dtype),
            quantization=self._model.precision,
            kv_cache_dtype="",
            kernels="torch",
            is_batch_invariant=False,
        )

    @property
    def vocab_size(self) -> int:
        """Token ids are below this number."""
        module: Any = self._model.module
        num_embeddings: int = module.get_input_embeddings().num_embeddings
        return num_embeddings

    @property
    def num_positions(self) -> int | None:
        """Tokens of the longest text; `None` where any number will do."""
        limit: int | None = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return limit

    def close(self) -> None:
        """Gives back the weights; there are no calls afterwards."""
        del self._model

    @torch.inference_mode()
    def encode(self, sequences: Sequence[Sequence[int]]) -> list[bytes]:
        """One vector for each sequence, in order: little-endian float32 values, of length 1 as a vector.

        Sequences of equal length that stand together attend in one call, so order them by length.
        """
        lengths = [len(sequence) for sequence in sequences]
        ids = [token_id for sequence in sequences for token_id in sequence]
        positions = [position for length in lengths for position in range(length)]
        # One transfer to the device.
        packed = torch.tensor([ids, positions], device=self._model.device)
        with attending(FlatAttention(lengths)):
            output = self._model.module(input_ids=packed[:1], position_ids=packed[1:])
        return pool(output.last_hidden_state[0], lengths, self._pooling)


@dataclass(frozen=True, slots=True)
class FlatAttention:
    """An `AttentionContext`: each sequence of a flat row sees itself, in both directions."""

    # Tokens of each sequence, in order.
    lengths: list[int]

    def attend(
        self,
        layer: int | None,  # noqa: ARG002  # the interface's
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert (sliding_window, softcap, sinks) == (None, None, None), "encoder_attention refuses them"
        parts = []
        first = 0
        for length, group in groupby(self.lengths):
            last = first + length * sum(1 for _ in group)
            queries, keys, values = (_as_sequences(states[0, :, first:last], length) for states in (query, key, value))
            attended = scaled_dot_product_attention(queries, keys, values, scale=scaling)
            parts.append(attended.transpose(1, 2).flatten(0, 1))
            first = last
        return torch.cat(parts).unsqueeze(0)


def _as_sequences(states: torch.Tensor, length: int) -> torch.Tensor:
    """[H, n * length, D] → [n, H, length, D], without a copy."""
    num_heads, num_tokens, head_dim = states.shape
    return states.view(num_heads, num_tokens // length, length, head_dim).transpose(0, 1)
