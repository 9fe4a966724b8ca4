"""The smaller kernels on torch tensors: norms, activations, embeddings, rotation.

float32 on the processor goes to the kernels; everything else, and all without a library, to the torch twins.
"""

import ctypes
from enum import Enum

import torch

from flashgen_runtime.kernels import twins
from flashgen_runtime.kernels.kv_layer import KVLayer
from flashgen_runtime.kernels.library import CRopeStore, KernelLibrary, address, library


class Activation(Enum):
    """Activation functions; the value is the number in `fg_activation` of `sources/kernels.h`."""

    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3


# Of tables of embeddings, as in `fg_format`.
TABLE_FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float, offset: float = 0.0) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * (weight + offset) over the last dimension: x [..., K], weight [K]."""
    kernels = _kernels_for(x, weight)
    if kernels is None:
        return twins.rms_norm(x, weight, eps=eps, offset=offset)
    rows, out, weight = _rows(x), _like(x), weight.contiguous()
    kernels.rms_norm(
        address(rows), rows.stride(0), address(weight), offset, eps, address(out), x.shape[-1], *rows.shape
    )
    return out


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension: x [..., K], weight and bias [K]."""
    kernels = _kernels_for(x, weight, bias)
    if kernels is None:
        return twins.layer_norm(x, weight, bias, eps=eps)
    rows, out, weight, bias = _rows(x), _like(x), weight.contiguous(), bias.contiguous()
    kernels.layer_norm(
        address(rows), rows.stride(0), address(weight), address(bias), eps, address(out), x.shape[-1], *rows.shape
    )
    return out


def activate(x: torch.Tensor, kind: Activation) -> torch.Tensor:
    """The activation of each value: [..., K] → [..., K]."""
    kernels = _kernels_for(x)
    if kernels is None:
        return twins.activate(x, kind.name.lower())
    rows, out = _rows(x), _like(x)
    kernels.activate(kind.value, address(rows), rows.stride(0), address(out), x.shape[-1], *rows.shape)
    return out


def gated_activation(x: torch.Tensor, kind: Activation) -> torch.Tensor:
    """The activation of the first half of each row times its second half: [..., 2 K] → [..., K]."""
    kernels = _kernels_for(x)
    if kernels is None:
        return twins.gated_activation(x, kind.name.lower())
    rows, size = _rows(x), x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], size)
    kernels.gated_activation(kind.value, address(rows), rows.stride(0), address(out), size, len(rows), size)
    return out


def embed(table: torch.Tensor, ids: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """scale * table[ids]: table [V, K] in float32, float16 or bfloat16, ids int64 [...] → [..., K] float32."""
    kernels = library()
    if kernels is None or table.device.type != "cpu" or table.dtype not in TABLE_FORMATS:
        return twins.embed(table, ids, scale=scale)
    table, flat = table.contiguous(), ids.contiguous()
    out = torch.empty(*ids.shape, table.shape[1])
    kernels.embed(
        address(table),
        TABLE_FORMATS[table.dtype],
        table.shape[1],
        address(flat),
        flat.numel(),
        scale,
        address(out),
        table.shape[1],
        0,
    )
    return out


def rope_angles(positions: torch.Tensor, frequencies: torch.Tensor, *, factor: float = 1.0) -> torch.Tensor:
    """Cosines, then sines of position * frequency, times `factor`: [T] int64, [count] float32 → [T, 2 * count] float32.

    The angle is rounded to float32, as in the models' own code; its cosine and sine are right for any such angle.
    """
    kernels = _kernels_for(frequencies)
    if kernels is None:
        return twins.rope_angles(positions, frequencies, factor=factor)
    positions, frequencies = positions.contiguous(), frequencies.contiguous()
    out = torch.empty(len(positions), 2 * len(frequencies))
    kernels.rope_angles(
        address(positions), address(frequencies), len(frequencies), factor, address(out), len(positions)
    )
    return out


def rope_and_store(
    qkv: torch.Tensor,
    angles: torch.Tensor,
    layer: KVLayer,
    slots: torch.Tensor,
    *,
    num_heads: int,
    query_norm: torch.Tensor | None = None,
    key_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
) -> None:
    """Norms (optional) and rotates queries and keys in place, and stores keys and values.

    Args:
        qkv: [T, (num_heads + H_kv) * key_size + H_kv * value_size], float32: queries, keys, values. Queries are
            rotated when this returns; what stands in place of the keys and values after it is not promised.
        angles: [T, 2 * count], as `rope_angles` gives them; the first 2 * count values of a head are rotated.
        layer: the cache.
        slots: [T], int64, each once.
        num_heads: heads of the queries.
        query_norm, key_norm: [key_size], weights of an RMS norm over each head.
        eps, offset: as in `rms_norm`.
    """
    kernels = _kernels_for(qkv, angles)
    if kernels is None or not layer.fits_kernels:
        twins.rope_and_store(
            qkv,
            angles,
            layer,
            slots,
            num_heads=num_heads,
            query_norm=query_norm,
            key_norm=key_norm,
            eps=eps,
            offset=offset,
        )
        return
    assert qkv.stride(-1) == 1, "the projection's rows lie dense"
    angles, slots = angles.contiguous(), slots.contiguous()
    options = CRopeStore(
        num_heads=num_heads,
        query_norm=address(query_norm),
        key_norm=address(key_norm),
        norm_eps=eps,
        norm_offset=offset,
        rope_count=angles.shape[-1] // 2,
    )
    kernels.rope_and_store(
        ctypes.byref(options),
        address(qkv),
        qkv.stride(0),
        address(angles),
        ctypes.byref(layer.c_struct),
        address(slots),
        len(slots),
    )


def _kernels_for(*tensors: torch.Tensor) -> KernelLibrary | None:
    can_run = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    return library() if can_run else None


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[rows, K], the values of a row side by side."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape)
