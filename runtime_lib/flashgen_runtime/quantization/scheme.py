"""What every scheme of quantised layers says of itself, and what the kernels make of it."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from flashgen_runtime.kernels.coded_panels import MIDDLE, CodedWeight
from flashgen_runtime.kernels.panels import WeightFormat
from flashgen_runtime.quantization.codes import Codes, Take

# In the words of safetensors.
SCALE_DTYPES = ("F16", "BF16", "F32")

# Nibbles of a word of the kernels': groups begin with a word.
_NIBBLES = 8


class StoredTensor(NamedTuple):
    """What a tensor of a quantised layer must be."""

    shape: tuple[int, ...]

    # One of these, in the words of safetensors.
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How a layer's weights are rounded."""

    bits: int

    # Inputs that share a scale; `None`: all inputs of an output do.
    group_size: int | None

    # Whether the middle code stands for 0 in all groups.
    is_symmetric: bool = True

    # Whether the inputs of a group are neighbours.
    is_in_order: bool = True

    # fp8 instead of integers.
    is_float: bool = False

    @property
    def label(self) -> str:
        """For people: `int4 g128`."""
        group = f" g{self.group_size}" if self.group_size else ""
        return f"fp{self.bits}" if self.is_float else f"int{self.bits}{group}"

    def num_groups(self, in_features: int) -> int:
        return -(-in_features // self.group_size) if self.group_size else 1


class LayerScheme(Protocol):
    """How one linear layer lies in a checkpoint."""

    @property
    def precision(self) -> Precision:
        """How its weights are rounded."""

    def tensors(self, out_features: int, in_features: int) -> dict[str, StoredTensor]:
        """Its tensors by the last part of their names."""

    @property
    def ignored(self) -> tuple[str, ...]:
        """Last parts of names of tensors that may lie beside them and say nothing more."""

    def read(self, take: Take) -> Codes:
        """The layer of its tensors; raises `CodesError`."""


class KernelForm(NamedTuple):
    """How the kernels hold a layer whose codes they take as they are."""

    weight_format: WeightFormat
    group_size: int
    has_offsets: bool


def kernel_form(precision: Precision, in_features: int) -> KernelForm | None:
    """How the kernels hold a layer without rounding it again; `None` where they cannot."""
    if reason_against_kernels(precision) is not None:
        return None
    if precision.bits == 8:
        return KernelForm(WeightFormat.INT8, 0, has_offsets=False)
    group_size = precision.group_size or -(-in_features // _NIBBLES) * _NIBBLES
    return KernelForm(WeightFormat.INT4, group_size, has_offsets=not precision.is_symmetric)


def reason_against_kernels(precision: Precision) -> str | None:
    """Why a layer's codes do not fit the kernels; `None` where they do."""
    if precision.is_float:
        return "there is no kernel for fp8"
    if not precision.is_in_order:
        return "the inputs of a group are no neighbours (act order)"
    if precision.bits == 8 and precision.group_size is not None:
        return "int8 kernels have no groups"
    if precision.bits == 8 and not precision.is_symmetric:
        return "int8 kernels have no zero points"
    if precision.group_size is not None and precision.group_size % _NIBBLES:
        return f"groups of {precision.group_size} are no multiple of {_NIBBLES}"
    return None


def coded_weight(codes: Codes, form: KernelForm) -> CodedWeight:
    """The layer for `kernels.coded_panels`."""
    if form.weight_format is WeightFormat.INT8:
        return CodedWeight(codes.values, codes.scales[0], None)
    if not form.has_offsets:
        return CodedWeight(codes.values, codes.scales, None)
    assert codes.zeros is not None, "integers have zeros"
    return CodedWeight(codes.values, codes.scales, (MIDDLE[form.weight_format] - codes.zeros.float()) * codes.scales)


def fused(weights: list[CodedWeight]) -> CodedWeight:
    """Layers of the same input and form as one: their outputs follow one another."""
    codes, scales, offsets = zip(*weights, strict=True)
    return CodedWeight(
        torch.cat(codes),
        torch.cat(scales, dim=-1),
        None if offsets[0] is None else torch.cat(offsets, dim=-1),
    )
