"""Runs an encoder on flat batches without padding and pools each sequence to one vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Literal

import torch
from torch.nn.functional import normalize, scaled_dot_product_attention

from flashgen_runtime.engine.attention import ENCODER_ATTENTION, attending
from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.quiet import quiet_transformers

Pooling = Literal["mean", "cls"]


class Encoder:
    """Turns token ids into unit vectors; each call of `encode` is one forward pass."""

    def __init__(self, model: LoadedModel, *, pooling: Pooling) -> None:
        self._model = model
        self._pooling = pooling
        module: Any = model.module
        with quiet_transformers():
            module.set_attn_implementation(ENCODER_ATTENTION)

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
        pooled = self._pool(output.last_hidden_state[0], lengths)
        vectors = normalize(pooled, dim=-1).cpu().numpy().astype("<f4")
        return [vector.tobytes() for vector in vectors]

    def _pool(self, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """[T, hidden_size] → [B, hidden_size], float32."""
        if self._pooling == "cls":
            starts = [0, *accumulate(lengths)][:-1]
            return hidden[starts].float()
        return torch.stack([tokens.mean(dim=0) for tokens in torch.split(hidden.float(), lengths)])


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
    ) -> torch.Tensor:
        assert sliding_window is None, "encoder_attention refuses windows"
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
