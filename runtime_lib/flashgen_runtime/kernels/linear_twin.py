"""Linear layers in torch: weights rounded as the kernels round them, in rows instead of panels.

Shapes: `N` outputs, `K` inputs, `T` rows of activations.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

# Products of two int8 whose sum float32 holds exactly, in any order: 128 * 128 * 1024 = 2^24.
_EXACT_PRODUCTS = 1024


class Rounded(NamedTuple):
    """A matrix as small integers, and what they are multiplied with."""

    # int8 of weights, float32 of activations.
    values: torch.Tensor

    # float32: one per row, or [groups, N].
    scales: torch.Tensor


def linear_float(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[T, N] of activations [T, K] and weights [N, K] of a float type; sums are float32."""
    if rows.is_cuda and weight.dtype is not torch.float32:
        return torch.mm(rows.to(weight.dtype), weight.T, out_dtype=torch.float32)
    return rows @ weight.float().T


def linear_int8(rows: torch.Tensor, weight: Rounded) -> torch.Tensor:
    """[T, N] of activations [T, K], rounded here, and `round_to_int8`'s weights; sums are exact."""
    activations = _round_activations(rows)
    # Pieces that float32 holds, added as float64.
    total = torch.zeros(rows.shape[0], weight.values.shape[0], dtype=torch.float64, device=rows.device)
    for first in range(0, rows.shape[1], _EXACT_PRODUCTS):
        piece = slice(first, first + _EXACT_PRODUCTS)
        total += activations.values[:, piece] @ weight.values[:, piece].T.float()
    return total.float() * (activations.scales * weight.scales)


def linear_int4(
    rows: torch.Tensor, weight: Rounded, group_size: int, *, offsets: torch.Tensor | None = None
) -> torch.Tensor:
    """[T, N] of activations [T, K], rounded here to int8, and `round_to_int4`'s weights; a group's sum is exact.

    Offsets, [groups, N], are added to every weight of a group.
    """
    activations = _round_activations(rows)
    total = torch.zeros(rows.shape[0], weight.values.shape[0], dtype=torch.float64, device=rows.device)
    for group, group_scales in enumerate(weight.scales):
        piece = slice(group * group_size, (group + 1) * group_size)
        values = activations.values[:, piece]
        total += (values @ weight.values[:, piece].T.float()) * group_scales.double()
        if offsets is not None:
            total += values.sum(dim=1, keepdim=True) * offsets[group].double()
    return total.float() * activations.scales


def round_to_int8(weight: torch.Tensor) -> Rounded:
    """-127 .. 127 for the largest of each row of [N, K]; scales [N]."""
    largest = weight.abs().amax(dim=1, keepdim=True)
    values = (weight * _quotient(127.0, largest)).round()
    return Rounded(values.to(torch.int8), (largest / 127.0).flatten())


def round_to_int4(weight: torch.Tensor, group_size: int) -> Rounded:
    """-8 for the value of a group that is farthest from zero: no level is lost, and a scale has a sign.

    Scales: [groups, N].
    """
    out_features, in_features = weight.shape
    groups = pad(weight, (0, -in_features % group_size)).view(out_features, -1, group_size)
    farthest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    values = (groups * _quotient(-8.0, farthest)).round().clamp(-8, 7)
    values = values.view(out_features, -1)[:, :in_features].to(torch.int8).contiguous()
    return Rounded(values, (farthest / -8.0).squeeze(2).T.contiguous())


def _round_activations(rows: torch.Tensor) -> Rounded:
    largest = rows.abs().amax(dim=1, keepdim=True)
    return Rounded((rows * _quotient(127.0, largest)).round(), largest / 127.0)


def _quotient(level: float, farthest: torch.Tensor) -> torch.Tensor:
    """level / farthest; 0 where all values are 0."""
    # A number divided by a tensor would be its reciprocal times the number, which is rounded twice.
    return torch.where(farthest == 0, 0.0, torch.full_like(farthest, level) / farthest)
