"""Panels of integers that a checkpoint holds, laid out as they are: nothing is rounded a second time.

Beside `panels.pack`, which rounds floats. The layout is that of `sources/panel.h`.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from flashgen_runtime.kernels.huge_pages import zero_bytes
from flashgen_runtime.kernels.library import library
from flashgen_runtime.kernels.panels import Layout, Panels, WeightFormat

# Outputs of a panel, and values of a row in one of its words.
WIDTH = 32
_VALUES = {WeightFormat.INT8: 4, WeightFormat.INT4: 8}

# The code that stands for 0.
MIDDLE = {WeightFormat.INT8: 128, WeightFormat.INT4: 8}


class CodedWeight(NamedTuple):
    """A matrix of codes: (code - middle of the range) * scale, plus the offset where there is one.

    Attributes:
        codes: [out_features, in_features], uint8.
        scales: float32. INT8: [out_features]; INT4: [groups, out_features].
        offsets: INT4: as the scales, or `None`.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None


def pack_codes(
    weight: CodedWeight, weight_format: WeightFormat, *, group_size: int, bias: torch.Tensor | None = None
) -> Panels:
    """Lays out codes for `panels.linear`.

    Args:
        weight: on the processor.
        weight_format: INT8 or INT4.
        group_size: INT4: inputs that share a scale, a multiple of 8; else 0.
        bias: [out_features].
    """
    out_features, in_features = weight.codes.shape
    if library() is None:
        data = (weight.codes.to(torch.int16) - MIDDLE[weight_format]).to(torch.int8)
        layout, scales, offsets = Layout.ROWS, weight.scales, weight.offsets
    else:
        data = _words(weight.codes, weight_format, group_size or _VALUES[weight_format])
        layout, scales = Layout.PANELS, _by_panel(weight.scales)
        offsets = None if weight.offsets is None else _by_panel(weight.offsets)
    return Panels(
        format=weight_format,
        in_features=in_features,
        out_features=out_features,
        group_size=group_size,
        data=data,
        scales=scales,
        bias=None if bias is None else bias.float().contiguous(),
        layout=layout,
        offsets=offsets,
    )


def _words(codes: torch.Tensor, weight_format: WeightFormat, multiple: int) -> torch.Tensor:
    """[panels, words of a row, 32 outputs] words of four bytes, as a row of bytes."""
    out_features, in_features = codes.shape
    padded = pad(codes, (0, -in_features % multiple), value=MIDDLE[weight_format])
    # Columns beyond the last are zeros, as `pack` leaves them.
    padded = pad(padded, (0, 0, 0, -out_features % WIDTH)).contiguous()
    if weight_format is WeightFormat.INT4:
        # The low nibbles of a word are its values 0 to 3, the high ones 4 to 7.
        halves = padded.view(len(padded), -1, 2, 4)
        padded = halves[:, :, 0] | (halves[:, :, 1] << 4)
    words = padded.view(len(padded), -1).view(torch.int32)
    panels = words.view(-1, WIDTH, words.shape[1]).transpose(1, 2)
    data = zero_bytes(panels.numel() * 4)
    data.view(torch.int32).view(panels.shape).copy_(panels)
    return data


def _by_panel(of_groups: torch.Tensor) -> torch.Tensor:
    """[panels, groups, 32] of [groups, out_features] or [out_features], flat."""
    groups = of_groups.view(-1, of_groups.shape[-1])
    padded = pad(groups, (0, -groups.shape[1] % WIDTH))
    return padded.view(len(groups), -1, WIDTH).transpose(0, 1).contiguous().flatten()
