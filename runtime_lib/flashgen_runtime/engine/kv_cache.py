"""The paged KV cache: the tensors behind the block numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from flashgen_runtime.config import EngineConfig


def kv_cache_blocks(engine: EngineConfig, *, max_context: int, block_bytes: int) -> int:
    """Blocks of a model's KV cache: as many as its memory holds, and no more than its requests can ever fill."""
    most = engine.max_num_seqs * -(-max_context // engine.block_size)
    return min(engine.kv_cache_bytes // block_bytes, most) if block_bytes else most


class LayerShape(NamedTuple):
    """What one attention layer stores for one token."""

    num_kv_heads: int
    key_head_dim: int
    value_head_dim: int

    @property
    def num_values(self) -> int:
        return self.num_kv_heads * (self.key_head_dim + self.value_head_dim)


class KVCache:
    """Keys and values of all layers, in blocks of `block_size` tokens; a token's slot is block * block_size + offset.

    Keys and values of each layer: [num_blocks, block_size, H_kv, D], dtype, device. They begin as zeros:
    attention multiplies what it masks by zero, which must not meet an infinity.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        def zeros(layer: LayerShape, head_dim: int) -> torch.Tensor:
            return torch.zeros(num_blocks, block_size, layer.num_kv_heads, head_dim, dtype=dtype, device=device)

        self.num_blocks = num_blocks
        self.block_size = block_size
        self._keys = [zeros(layer, layer.key_head_dim) for layer in layers]
        self._values = [zeros(layer, layer.value_head_dim) for layer in layers]

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor, *, slots: torch.Tensor) -> None:
        """Stores new tokens of one layer.

        Args:
            layer: index of the layer.
            keys, values: [T, H_kv, D]
            slots: [T], int64, each once.
        """
        self._keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self._values[layer].flatten(0, 1).index_copy_(0, slots, values)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks of all layers, source to target."""
        sources, targets = torch.tensor(pairs, device=self._keys[0].device).T
        for cache in (*self._keys, *self._values):
            cache.index_copy_(0, targets, cache.index_select(0, sources))

    def read(self, layer: int, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies whole blocks of one layer: [B, N] → keys and values, [B, H_kv, N * block_size, D] each."""
        return _gather(self._keys[layer], blocks), _gather(self._values[layer], blocks)


def _gather(cache: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    num_sequences, num_blocks = blocks.shape
    _, block_size, num_heads, head_dim = cache.shape
    # index_select is an order of magnitude faster than cache[blocks] on CPU.
    gathered = cache.index_select(0, blocks.flatten())
    return gathered.view(num_sequences, num_blocks * block_size, num_heads, head_dim).transpose(1, 2)
