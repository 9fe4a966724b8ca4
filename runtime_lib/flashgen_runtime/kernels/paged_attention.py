"""Attention over the paged cache, and what puts keys and values there."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from flashgen_runtime.kernels import twins
from flashgen_runtime.kernels.kv_layer import KVFormat, KVLayer
from flashgen_runtime.kernels.library import CAttention, CBatch, address, library, rounds_to_bf16

__all__ = [
    "AttentionBatch",
    "KVFormat",
    "KVLayer",
    "PagedBatch",
    "make_batch",
    "paged_attention",
    "rounds_factors",
    "store_kv",
]


class AttentionBatch(Protocol):
    """`B` sequences in one flat row of tokens, and where their keys and values lie; tensors are int64 and dense."""

    @property
    def starts(self) -> torch.Tensor:
        """[B + 1]: sequence i has the tokens starts[i] : starts[i + 1]."""

    @property
    def kv_lens(self) -> torch.Tensor:
        """[B]: tokens of each sequence that are in the cache, those of this batch included."""

    @property
    def block_tables(self) -> torch.Tensor:
        """[B, N], rows padded with any block."""

    @property
    def block_size(self) -> int: ...

    @property
    def c_struct(self) -> CBatch:
        """The same for the kernels; valid while this object lives."""


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """An `AttentionBatch` of nothing but sequences."""

    starts: torch.Tensor
    kv_lens: torch.Tensor
    block_tables: torch.Tensor
    block_size: int

    @property
    def c_struct(self) -> CBatch:
        return CBatch(
            num_sequences=len(self.kv_lens),
            block_size=self.block_size,
            block_table_stride=self.block_tables.shape[1],
            starts=address(self.starts),
            kv_lens=address(self.kv_lens),
            block_tables=address(self.block_tables),
        )


def make_batch(
    query_lens: Sequence[int],
    kv_lens: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    *,
    block_size: int,
    device: torch.device | str = "cpu",
) -> PagedBatch:
    """A batch from each sequence's new tokens, tokens in the cache and blocks."""
    longest = max(map(len, block_tables))
    starts = torch.tensor([0, *query_lens], device=device).cumsum(0)
    lens = torch.tensor(kv_lens, device=device)
    tables = torch.tensor([[*table, *[0] * (longest - len(table))] for table in block_tables], device=device)
    return PagedBatch(starts, lens, tables, block_size)


def store_kv(keys: torch.Tensor, values: torch.Tensor, layer: KVLayer, slots: torch.Tensor) -> None:
    """Stores new tokens in the layer's format.

    Args:
        keys: [T, H_kv, key_size], any float dtype, the layer's device.
        values: [T, H_kv, value_size]
        layer: the cache.
        slots: [T], int64, each once.
    """
    kernels = library()
    if kernels is None or not layer.fits_kernels:
        layer.write(keys, values, slots)
        return
    keys, values, slots = _with_dense_heads(keys), _with_dense_heads(values), slots.contiguous()
    kernels.store_kv(
        address(keys),
        *keys.stride()[:2],
        address(values),
        *values.stride()[:2],
        ctypes.byref(layer.c_struct),
        address(slots),
        len(slots),
    )


def paged_attention(
    queries: torch.Tensor,
    layer: KVLayer,
    batch: AttentionBatch,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    is_causal: bool = True,
) -> torch.Tensor:
    """Attention of each token to its sequence, whose keys and values are all in the cache.

    With the kernels each row's bits depend on its sequence alone, not on the batch, the chunks or the blocks.

    Args:
        queries: [T, H, key_size], any float dtype, the layer's device.
        layer: the cache.
        batch: which tokens belong together and which blocks they have.
        scaling: factor of the scores.
        window: a token sees those less than this far away; all when None.
        softcap: scores become softcap * tanh(score / softcap).
        sinks: [H], one more score in each head's softmax, without a value.
        is_causal: whether a token sees none that come after it.

    Returns:
        [T, H, value_size], float32
    """
    kernels = library()
    if kernels is None or not layer.fits_kernels:
        return twins.paged_attention(
            queries,
            layer,
            starts=batch.starts.tolist(),
            kv_lens=batch.kv_lens.tolist(),
            block_tables=batch.block_tables,
            scaling=scaling,
            window=window,
            softcap=softcap,
            sinks=sinks,
            is_causal=is_causal,
        )
    num_tokens, num_heads, key_size = queries.shape
    queries = _with_dense_heads(queries)
    if queries.stride(1) != key_size:
        queries = queries.contiguous()
    sinks = None if sinks is None else sinks.float().contiguous()
    options = CAttention(
        num_heads=num_heads,
        scaling=scaling,
        softcap=softcap or 0.0,
        window=window or 0,
        is_causal=is_causal,
        sinks=address(sinks),
    )
    out = torch.empty(num_tokens, num_heads, layer.value_size)
    kernels.paged_attention(
        ctypes.byref(options),
        address(queries),
        queries.stride(0),
        ctypes.byref(layer.c_struct),
        ctypes.byref(batch.c_struct),
        address(out),
        out.stride(0),
    )
    return out


def rounds_factors(layer: KVLayer) -> bool:
    """Whether the kernels of this processor round queries and weights of the softmax to bfloat16 over such a cache."""
    return layer.format in (KVFormat.BF16, KVFormat.INT8) and rounds_to_bf16()


def _with_dense_heads(x: torch.Tensor) -> torch.Tensor:
    """float32, each head's values side by side."""
    x = x.float()
    return x if x.stride(-1) == 1 else x.contiguous()
