"""The paged KV cache as our kernels keep it, and causal attention over it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flashgen_runtime.engine.batch import Batch
from flashgen_runtime.engine.kv_cache import LayerShape
from flashgen_runtime.errors import ConfigError
from flashgen_runtime.kernels.kv_layer import TILE_SIZE, KVFormat, KVLayer
from flashgen_runtime.kernels.paged_attention import paged_attention, store_kv

# What the attention kernel takes.
LARGEST_HEAD = 256
HEAD_STEP = 4

FORMATS = {torch.float32: KVFormat.F32, torch.float16: KVFormat.F16, torch.bfloat16: KVFormat.BF16}

# Scales beside a token's int8 keys and values of one head.
_SCALE_BYTES = 2 * torch.float32.itemsize


def takes_head_sizes(layers: Sequence[LayerShape]) -> bool:
    """Whether the kernels work on heads of these sizes."""
    sizes = {size for layer in layers for size in (layer.key_head_dim, layer.value_head_dim)}
    return all(size <= LARGEST_HEAD and size % HEAD_STEP == 0 for size in sizes)


def bytes_per_token(layers: Sequence[LayerShape], kv_format: KVFormat) -> int:
    """Bytes of one token's keys and values in all layers, scales included."""
    scales = sum(layer.num_kv_heads for layer in layers) * _SCALE_BYTES if kv_format is KVFormat.INT8 else 0
    return sum(layer.num_values for layer in layers) * kv_format.dtype.itemsize + scales


class KernelCache:
    """Keys and values of all layers; raises `ConfigError` for a block that is not whole tiles."""

    def __init__(self, layers: Sequence[LayerShape], *, num_blocks: int, block_size: int, kv_format: KVFormat) -> None:
        if block_size % TILE_SIZE:
            problem = f"the kernels take blocks of a multiple of {TILE_SIZE} tokens, found {block_size}"
            raise ConfigError("engine.block_size", problem)
        self.layers = [
            KVLayer(num_blocks, block_size, layer.num_kv_heads, layer.key_head_dim, layer.value_head_dim, kv_format)
            for layer in layers
        ]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks of all layers, source to target."""
        for layer in self.layers:
            layer.copy_blocks(pairs)


@dataclass(frozen=True, slots=True)
class KernelAttention:
    """An `AttentionContext`: one batch and the cache it lives in."""

    cache: KernelCache
    batch: Batch

    def attend(
        self,
        layer: int | None,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert layer is not None, "models that do not number their layers take the plain path"
        kv_layer = self.cache.layers[layer]
        store_kv(key[0].transpose(0, 1), value[0].transpose(0, 1), kv_layer, self.batch.slot_mapping)
        attended = paged_attention(
            query[0].transpose(0, 1),
            kv_layer,
            self.batch,
            scaling=scaling,
            window=sliding_window,
            softcap=softcap,
            sinks=sinks,
        )
        return attended.unsqueeze(0)
