"""The common form of a quantised linear layer: small codes, a scale and a zero for each group of inputs.

weight = (code - zero) * scale, in every scheme that is read here. Shapes: `N` outputs, `K` inputs, `G` groups.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

# Gives one tensor of a layer by the last part of its name.
Take = Callable[[str], torch.Tensor]


class CodesError(ValueError):
    """The tensors of a layer contradict each other or the configuration; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Codes:
    """One linear layer as its checkpoint holds it, unpacked."""

    # [N, K], uint8; in fp8 the values themselves, float8.
    values: torch.Tensor

    # [G, N], float32.
    scales: torch.Tensor

    # [G, N], uint8: the code that stands for 0; `None` in fp8.
    zeros: torch.Tensor | None

    # [K], int64: the group of each input.
    group_of: torch.Tensor

    def dequantize(self) -> torch.Tensor:
        """The weights that the format defines: [N, K], float32."""
        values = self.values.float()
        if self.zeros is not None:
            values -= self._of_inputs(self.zeros.float())
        values *= self._of_inputs(self.scales)
        return values

    def _of_inputs(self, of_groups: torch.Tensor) -> torch.Tensor:
        """[N, K] of [G, N]."""
        return of_groups.T.contiguous().index_select(1, self.group_of)


def octets(words: torch.Tensor) -> torch.Tensor:
    """[.., n, 4], uint8, of [.., n] words of int32, the lowest first."""
    # A copy, also of what torch calls contiguous because one of its sizes is 1: its strides may be anything.
    copy = words.clone(memory_format=torch.contiguous_format).view(-1)
    return copy.view(torch.uint8).view(*words.shape, 4)


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """[.., n * 32 / bits], uint8, of [.., n] words of int32, the lowest bits first."""
    found = octets(words)
    if bits == 4:
        found = torch.stack([found & 15, found >> 4], dim=-1).flatten(-2)
    return found.flatten(-2)


def in_order(num_inputs: int, group_size: int | None) -> torch.Tensor:
    """The group of each input where groups are neighbours; `None`: all are one group."""
    return torch.arange(num_inputs) // (group_size or num_inputs)
