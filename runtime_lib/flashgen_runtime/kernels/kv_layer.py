"""Keys and values of one attention layer in the layout of the kernels, `sources/kv_cache.h`."""

import ctypes
import math
from collections.abc import Sequence
from enum import Enum
from functools import cached_property

import torch

from flashgen_runtime.kernels.huge_pages import zero_bytes
from flashgen_runtime.kernels.library import CKVLayer, address, library

# Tokens of one tile.
TILE_SIZE = 32


class KVFormat(Enum):
    """How keys and values are stored; the numbers of `fg_format` in `sources/kernels.h`."""

    F32 = 0
    F16 = 1
    BF16 = 2
    INT8 = 3

    @property
    def dtype(self) -> torch.dtype:
        """What one value is stored as."""
        return _DTYPES[self]


_DTYPES = {
    KVFormat.F32: torch.float32,
    KVFormat.F16: torch.float16,
    KVFormat.BF16: torch.bfloat16,
    KVFormat.INT8: torch.int8,
}


class KVLayer:
    """The paged cache of one layer: `num_blocks` blocks of `block_size` tokens, zeros at first.

    Token i of block b has the slot b * block_size + i; slot s is token s % 32 of tile s // 32. The kernels want
    blocks of whole tiles and head sizes that are multiples of 4, see `fits_kernels`; the torch twins take any (with
    bfloat16: even) sizes.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        key_size: int,
        value_size: int,
        format: KVFormat,  # noqa: A002 # the field's word, as in `Panels`
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_kv_heads = num_kv_heads
        self.key_size = key_size
        self.value_size = value_size
        self.format = format

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            num_tiles = -(-num_blocks * block_size // TILE_SIZE)
            sizes = (num_tiles, num_kv_heads, *shape)
            if torch.device(device).type != "cpu":
                return torch.zeros(sizes, dtype=dtype, device=device)
            # Blocks that no request has reached take no memory.
            return zero_bytes(math.prod(sizes) * dtype.itemsize).view(dtype).view(sizes)

        # bfloat16: two neighbours along the sum, of a key's values or of tokens, stand side by side.
        is_paired = format is KVFormat.BF16
        self.keys = zeros(*((key_size // 2, TILE_SIZE, 2) if is_paired else (key_size, TILE_SIZE)), dtype=format.dtype)
        self.values = zeros(
            *((TILE_SIZE // 2, value_size, 2) if is_paired else (TILE_SIZE, value_size)), dtype=format.dtype
        )
        self.key_scales: torch.Tensor | None = None
        self.value_scales: torch.Tensor | None = None
        if format is KVFormat.INT8:
            self.key_scales = zeros(TILE_SIZE, dtype=torch.float32)
            self.value_scales = zeros(TILE_SIZE, dtype=torch.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, scales included."""
        return sum(tensor.nbytes for tensor in self._tensors)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def fits_kernels(self) -> bool:
        """Whether the kernels take this layer: by its sizes, where it lies, and a library being there."""
        has_whole_tiles = self.block_size % TILE_SIZE == 0
        has_whole_words = self.key_size % 4 == 0 and self.value_size % 4 == 0
        return has_whole_tiles and has_whole_words and self.device.type == "cpu" and library() is not None

    @cached_property
    def c_struct(self) -> CKVLayer:
        """`fg_kv_layer`; valid as long as this object lives."""
        return CKVLayer(
            format=self.format.value,
            num_heads=self.num_kv_heads,
            key_size=self.key_size,
            value_size=self.value_size,
            keys=address(self.keys),
            values=address(self.values),
            key_scales=address(self.key_scales),
            value_scales=address(self.value_scales),
        )

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, source to target; no target is a source or another pair's target."""
        if not pairs:
            return
        blocks = torch.tensor(pairs, dtype=torch.int64)
        kernels = library()
        if kernels is not None and self.fits_kernels:
            kernels.copy_blocks(ctypes.byref(self.c_struct), self.block_size, address(blocks), len(pairs))
            return
        sources, targets = (self._slots_of(column.to(self.device)) for column in blocks.unbind(1))
        self._put(targets, *self._take(sources))

    def write(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        """Stores tokens with torch alone: [T, H_kv, key_size], [T, H_kv, value_size], [T] int64."""
        if self.format is KVFormat.INT8:
            self._put(slots, *_quantized(keys.float()), *_quantized(values.float()))
        else:
            self._put(slots, keys.to(self.format.dtype), None, values.to(self.format.dtype), None)

    def read(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of slots [T], with torch alone: [T, H_kv, key_size] and [T, H_kv, value_size], float32."""
        keys, key_scales, values, value_scales = self._take(slots)
        keys, values = keys.float(), values.float()
        if key_scales is not None and value_scales is not None:
            keys, values = keys * key_scales[..., None], values * value_scales[..., None]
        return keys, values

    @property
    def _tensors(self) -> list[torch.Tensor]:
        return [part for part in (self.keys, self.values, self.key_scales, self.value_scales) if part is not None]

    def _slots_of(self, blocks: torch.Tensor) -> torch.Tensor:
        return (blocks[:, None] * self.block_size + torch.arange(self.block_size, device=self.device)).flatten()

    def _take(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """Keys, their scales, values and their scales as stored; token first."""
        tile, place = slots // TILE_SIZE, slots % TILE_SIZE
        if self.format is KVFormat.BF16:
            return self.keys[tile, :, :, place].flatten(2), None, self.values[tile, :, place // 2, :, place % 2], None
        keys, values = self.keys[tile, :, :, place], self.values[tile, :, place]
        if self.key_scales is None or self.value_scales is None:
            return keys, None, values, None
        return keys, self.key_scales[tile, :, place], values, self.value_scales[tile, :, place]

    def _put(
        self,
        slots: torch.Tensor,
        keys: torch.Tensor,
        key_scales: torch.Tensor | None,
        values: torch.Tensor,
        value_scales: torch.Tensor | None,
    ) -> None:
        tile, place = slots // TILE_SIZE, slots % TILE_SIZE
        if self.format is KVFormat.BF16:
            self.keys[tile, :, :, place] = keys.reshape(*keys.shape[:2], -1, 2)
            self.values[tile, :, place // 2, :, place % 2] = values
            return
        self.keys[tile, :, :, place], self.values[tile, :, place] = keys, values
        if self.key_scales is not None and self.value_scales is not None:
            assert key_scales is not None, "int8 values come with their scales"
            assert value_scales is not None, "int8 values come with their scales"
            self.key_scales[tile, :, place], self.value_scales[tile, :, place] = key_scales, value_scales


def _quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 and a scale for each token and head, [T, H_kv]: the largest magnitude becomes 127, ties go to even."""
    largest = x.abs().amax(-1)
    inverse = torch.where(largest > 0, 127.0 / largest, 0.0)
    return (x * inverse[..., None]).round().to(torch.int8), largest / 127.0
