"""Weights of linear layers as the kernels want them, and the layer itself: y = x W^T + bias.

`pack` rounds a weight matrix to a format and lays it out in panels of 32 columns (`sources/linear.cpp`); `in_place`
takes it as it lies in a checkpoint; `coded_panels.pack_codes` lays out integers that a checkpoint holds. Without
kernels, or on a device, all keep rows and `linear` is computed by torch, with the same rounding of weights and
activations: sums of int8 products are exact in both, so that their results are the same bits; other results differ by
the order of addition.
"""

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass, field
from enum import IntEnum

import torch

from flashgen_runtime.kernels.huge_pages import zero_bytes
from flashgen_runtime.kernels.library import CLinear, address, library, rounds_to_bf16
from flashgen_runtime.kernels.linear_twin import (
    Rounded,
    linear_float,
    linear_int4,
    linear_int8,
    round_to_int4,
    round_to_int8,
)

# Values of one column that share a scale in INT4.
GROUP_SIZE = 64


class WeightFormat(IntEnum):
    """How weights are stored; the values are those of `fg_format` in `sources/kernels.h`.

    INT8 has a scale per output and takes activations rounded to int8 with a scale per row; INT4 has one per output and
    group of inputs, and the same activations.
    """

    F32 = 0
    F16 = 1
    BF16 = 2
    INT8 = 3
    INT4 = 4

    @property
    def is_quantized(self) -> bool:
        """Whether scales lie beside the values."""
        return self in (WeightFormat.INT8, WeightFormat.INT4)


class Layout(IntEnum):
    """How the values lie; the values are those of `fg_layout` in `sources/kernels.h`."""

    PANELS = 0

    # [out_features, in_features], one value after another: what a checkpoint holds, and what torch takes.
    ROWS = 1

    # As ROWS; few rows of activations may be summed in another order than many, which is faster.
    ROWS_IN_ANY_ORDER = 2


_DTYPES = {WeightFormat.F32: torch.float32, WeightFormat.F16: torch.float16, WeightFormat.BF16: torch.bfloat16}
_FORMATS = {dtype: weight_format for weight_format, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Panels:
    """The weights of one linear layer. Immutable; made by `pack` and its like or `in_place`, or from a file."""

    format: WeightFormat
    in_features: int
    out_features: int

    # INT4: values of one column that share a scale; else 0.
    group_size: int

    # PANELS: [bytes], uint8, 64-byte aligned. ROWS: [out_features, in_features] in the format's type; INT4 as int8.
    data: torch.Tensor

    # float32. PANELS: as `sources/kernels.h` says. ROWS: INT8 [out_features], INT4 [groups, out_features].
    scales: torch.Tensor | None

    # [out_features], float32.
    bias: torch.Tensor | None
    layout: Layout = Layout.PANELS

    # INT4, as the scales: what is added to every value of a group, where its zero is not the middle of the range.
    offsets: torch.Tensor | None = None
    _c_struct: CLinear = field(init=False, repr=False)

    def __post_init__(self) -> None:
        struct = CLinear(
            self.format,
            self.in_features,
            self.out_features,
            self.group_size,
            address(self.data),
            address(self.scales),
            address(self.bias),
            self.layout,
            address(self.offsets),
        )
        object.__setattr__(self, "_c_struct", struct)

    def c_struct(self) -> CLinear:
        """The layer for the kernels; valid while these panels live."""
        return self._c_struct

    @property
    def nbytes(self) -> int:
        """Bytes of values, scales, offsets and bias."""
        tensors = (self.data, self.scales, self.offsets, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def runs_on_kernels(self) -> bool:
        """Whether `linear` is the C kernel; else torch."""
        if library() is None or self.data.device.type != "cpu":
            return False
        return self.layout is Layout.PANELS or not self.format.is_quantized


def pack(
    weight: torch.Tensor,
    weight_format: WeightFormat,
    *,
    bias: torch.Tensor | None = None,
    group_size: int = GROUP_SIZE,
) -> Panels:
    """Rounds `weight` to a format, to nearest, and lays it out for `linear`.

    Args:
        weight: [out_features, in_features], float32, float16 or bfloat16.
        bias: [out_features].
        group_size: INT4 only; a multiple of 8.
    """
    if library() is None or weight.device.type != "cpu":
        return pack_rows(weight, weight_format, bias=bias, group_size=group_size)
    return _pack_panels(weight, weight_format, bias=bias, group_size=group_size)


def pack_fused(
    weights: Sequence[torch.Tensor],
    weight_format: WeightFormat,
    *,
    biases: Sequence[torch.Tensor | None] = (),
    group_size: int = GROUP_SIZE,
) -> Panels:
    """Packs several layers with the same input as one: their outputs follow one another. A missing bias is zero."""
    bias = None
    if any(each is not None for each in biases):
        pairs = zip(weights, biases, strict=True)
        bias = torch.cat([weight.new_zeros(len(weight)) if each is None else each for weight, each in pairs])
    return pack(torch.cat(list(weights)), weight_format, bias=bias, group_size=group_size)


def panels_without_data(
    weight_format: WeightFormat,
    in_features: int,
    out_features: int,
    *,
    has_bias: bool = False,
    has_offsets: bool = False,
    group_size: int = GROUP_SIZE,
) -> Panels:
    """What `pack` would make, its tensors on the meta device: they have a dtype and a shape, and no values."""
    kernels = library()
    assert kernels is not None, "without kernels nobody reads panels"
    group_size = group_size if weight_format is WeightFormat.INT4 else 0
    shape = (weight_format, in_features, out_features, group_size)

    def empty(count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(count, dtype=dtype, device="meta")

    num_scales = kernels.linear_num_scales(*shape)

    return Panels(
        format=weight_format,
        in_features=in_features,
        out_features=out_features,
        group_size=group_size,
        data=empty(kernels.linear_panel_bytes(*shape), torch.uint8),
        scales=empty(num_scales, torch.float32) if weight_format.is_quantized else None,
        bias=empty(out_features, torch.float32) if has_bias else None,
        offsets=empty(num_scales, torch.float32) if has_offsets else None,
    )


def in_place(weight: torch.Tensor, *, bias: torch.Tensor | None = None, deterministic: bool = True) -> Panels:
    """The layer of a weight matrix that stays where it is, without a copy: slower than panels from about 8 rows on.

    Args:
        weight: [out_features, in_features], float32, float16 or bfloat16, contiguous.
        deterministic: a row's result is the same bits for every number of rows, as it is with panels.
    """
    assert weight.is_contiguous(), "the kernels read rows that follow one another"
    return Panels(
        format=_FORMATS[weight.dtype],
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        group_size=0,
        data=weight,
        scales=None,
        bias=None if bias is None else bias.float().contiguous(),
        layout=Layout.ROWS if deterministic else Layout.ROWS_IN_ANY_ORDER,
    )


def linear(x: torch.Tensor, panels: Panels, *, out: torch.Tensor | None = None, add: bool = False) -> torch.Tensor:
    """y = x W^T + bias.

    Args:
        x: [..., in_features], float32.
        out: [..., out_features], float32: where y goes. Values of a row follow one another, rows need not.
        add: y is added to what `out` holds.

    Returns:
        `out`, or a new tensor [..., out_features], float32.
    """
    assert x.dtype is torch.float32, "activations are float32"
    assert out is not None or not add, "without `out` there is nothing to add to"
    if out is None:
        out = x.new_empty(*x.shape[:-1], panels.out_features)
    if panels.runs_on_kernels:
        _linear_on_kernels(x, panels, out, add=add)
    elif add:
        out += _linear_on_torch(x, panels)
    else:
        out.copy_(_linear_on_torch(x, panels))
    return out


def unpack(panels: Panels) -> torch.Tensor:
    """The weights after rounding: [out_features, in_features], float32."""
    if panels.layout is not Layout.PANELS:
        return _unpack_rows(panels)
    kernels = library()
    assert kernels is not None, "only kernels make panels"
    weight = torch.empty(panels.out_features, panels.in_features)
    for index, row in enumerate(weight):
        kernels.linear_unpack_row(byref(panels.c_struct()), index, address(row))
    return weight


def pack_rows(
    weight: torch.Tensor,
    weight_format: WeightFormat,
    *,
    bias: torch.Tensor | None = None,
    group_size: int = GROUP_SIZE,
) -> Panels:
    """`pack` in torch: the same values and scales, in rows."""
    scales = None
    if weight_format is WeightFormat.INT8:
        data, scales = round_to_int8(weight.float())
    elif weight_format is WeightFormat.INT4:
        data, scales = round_to_int4(weight.float(), group_size)
    else:
        data = weight.to(_DTYPES[weight_format]).contiguous()
    return Panels(
        format=weight_format,
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        group_size=group_size if weight_format is WeightFormat.INT4 else 0,
        data=data,
        scales=scales,
        bias=None if bias is None else bias.float().contiguous(),
        layout=Layout.ROWS,
    )


def _pack_panels(
    weight: torch.Tensor, weight_format: WeightFormat, *, bias: torch.Tensor | None, group_size: int
) -> Panels:
    kernels = library()
    assert kernels is not None, "without kernels nobody reads panels"
    if weight.dtype not in _FORMATS:
        weight = weight.float()
    weight = weight.contiguous()
    if weight_format is not WeightFormat.INT4:
        group_size = 0
    assert group_size % 8 == 0, "eight nibbles share a word"

    out_features, in_features = weight.shape
    shape = (weight_format, in_features, out_features, group_size)
    data = zero_bytes(kernels.linear_panel_bytes(*shape))
    scales = torch.empty(kernels.linear_num_scales(*shape)) if weight_format.is_quantized else None
    kernels.linear_pack(
        weight_format,
        group_size,
        address(weight),
        _FORMATS[weight.dtype],
        in_features,
        out_features,
        address(data),
        address(scales),
    )
    return Panels(
        format=weight_format,
        in_features=in_features,
        out_features=out_features,
        group_size=group_size,
        data=data,
        scales=scales,
        bias=None if bias is None else bias.float().contiguous(),
    )


def _linear_on_kernels(x: torch.Tensor, panels: Panels, out: torch.Tensor, *, add: bool) -> None:
    kernels = library()
    assert kernels is not None, "the caller looked"
    rows = x.reshape(-1, panels.in_features)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    # `view`, not `reshape`: a copy would receive the result.
    target = out.view(-1, panels.out_features)
    assert target.stride(1) == 1, "the kernel writes whole rows"
    kernels.linear_forward(
        byref(panels.c_struct()),
        address(rows),
        rows.stride(0),
        address(target),
        target.stride(0),
        rows.shape[0],
        add,
    )


def _linear_on_torch(x: torch.Tensor, panels: Panels) -> torch.Tensor:
    rows = x.reshape(-1, panels.in_features)
    if panels.format.is_quantized:
        assert panels.scales is not None, "integers have scales"
        weight = Rounded(panels.data, panels.scales)
        y = (
            linear_int8(rows, weight)
            if panels.format is WeightFormat.INT8
            else linear_int4(rows, weight, panels.group_size, offsets=panels.offsets)
        )
    else:
        if panels.format is WeightFormat.BF16 and rounds_to_bf16():
            rows = rows.bfloat16().float()
        y = linear_float(rows, panels.data)
    if panels.bias is not None:
        y += panels.bias
    return y.view(*x.shape[:-1], panels.out_features)


def _unpack_rows(panels: Panels) -> torch.Tensor:
    values = panels.data.float()
    if panels.scales is None:
        return values
    if panels.format is WeightFormat.INT8:
        return values * panels.scales[:, None]

    def of_values(of_groups: torch.Tensor) -> torch.Tensor:
        return of_groups.T.repeat_interleave(panels.group_size, dim=1)[:, : panels.in_features]

    values = values * of_values(panels.scales)
    return values if panels.offsets is None else values + of_values(panels.offsets)
