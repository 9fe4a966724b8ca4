"""The formats of compressed-tensors that are run: "pack-quantized", "int-quantized" and "float-quantized".

Codes are stored as signed integers, moved to unsigned ones where they are packed. The formats' source is
compressed-tensors, `compressors/quantized_compressors/pack_quantized.py` (`pack_to_int32`), `naive_quantized.py` and
`quantization/lifecycle/forward.py` (`dequantize`).
"""

from dataclasses import dataclass

import torch

from flashgen_runtime.quantization.codes import Codes, CodesError, Take, in_order, unpack
from flashgen_runtime.quantization.scheme import SCALE_DTYPES, Precision, StoredTensor

# Of activations: they are rounded in our own way, or not at all. Symmetric weights have no zeros, old files hold some.
_OF_ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """`weight_packed` [N, K * bits / 32], `weight_scale` [N, G], `weight_shape` [2]; zeros are packed along N."""

    precision: Precision

    @property
    def ignored(self) -> tuple[str, ...]:
        return (*_OF_ACTIVATIONS, "weight_zero_point") if self.precision.is_symmetric else _OF_ACTIVATIONS

    def tensors(self, out_features: int, in_features: int) -> dict[str, StoredTensor]:
        bits, num_groups = self.precision.bits, self.precision.num_groups(in_features)
        found = {
            "weight_packed": StoredTensor((out_features, -(-in_features * bits // 32)), ("I32",)),
            "weight_scale": StoredTensor((out_features, num_groups), SCALE_DTYPES),
            "weight_shape": StoredTensor((2,), ("I64", "I32")),
        }
        if not self.precision.is_symmetric:
            found["weight_zero_point"] = StoredTensor((-(-out_features * bits // 32), num_groups), ("I32",))
        if not self.precision.is_in_order:
            found["weight_g_idx"] = StoredTensor((in_features,), ("I32", "I64"))
        return found

    def read(self, take: Take) -> Codes:
        bits = self.precision.bits
        words, scales = take("weight_packed"), take("weight_scale").float().T.contiguous()
        num_outputs, num_inputs = take("weight_shape").tolist()
        if num_outputs != len(words) or not 0 <= words.shape[1] * 32 // bits - num_inputs < 32 // bits:
            raise CodesError(f"`weight_shape` is {[num_outputs, num_inputs]}, which is not that of `weight_packed`")
        if self.precision.is_symmetric:
            zeros = torch.full_like(scales, 1 << bits - 1, dtype=torch.uint8)
        else:
            zeros = unpack(take("weight_zero_point").T, bits)[:, :num_outputs]
        group_of = in_order(num_inputs, self.precision.group_size)
        if not self.precision.is_in_order:
            group_of = take("weight_g_idx").long()
            if not 0 <= int(group_of.min()) <= int(group_of.max()) < len(scales):
                raise CodesError(f"`weight_g_idx` names the group {int(group_of.max())} of {len(scales)}")
        return Codes(values=unpack(words, bits)[:, :num_inputs], scales=scales, zeros=zeros, group_of=group_of)


@dataclass(frozen=True, slots=True)
class PlainLayer:
    """`weight` [N, K] in int8 or fp8, `weight_scale` [N, 1], or [1] for the whole matrix; zeros as the scales."""

    precision: Precision
    has_one_scale: bool

    @property
    def ignored(self) -> tuple[str, ...]:
        return (*_OF_ACTIVATIONS, "weight_zero_point") if self.precision.is_symmetric else _OF_ACTIVATIONS

    def tensors(self, out_features: int, in_features: int) -> dict[str, StoredTensor]:
        of_outputs = (1,) if self.has_one_scale else (out_features, 1)
        found = {
            "weight": StoredTensor((out_features, in_features), ("F8_E4M3",) if self.precision.is_float else ("I8",)),
            "weight_scale": StoredTensor(of_outputs, SCALE_DTYPES),
        }
        if not self.precision.is_symmetric:
            found["weight_zero_point"] = StoredTensor(of_outputs, ("I8",))
        return found

    def read(self, take: Take) -> Codes:
        weight = take("weight")
        num_outputs, num_inputs = weight.shape
        zeros = None
        if not self.precision.is_float:
            weight = _unsigned(weight)
            zeros = torch.full((1, num_outputs), 128, dtype=torch.uint8)
        if not self.precision.is_symmetric:
            zeros = _unsigned(take("weight_zero_point")).view(1, -1).expand(1, num_outputs)
        return Codes(
            values=weight,
            scales=take("weight_scale").float().view(1, -1).expand(1, num_outputs),
            zeros=zeros,
            group_of=in_order(num_inputs, None),
        )


def _unsigned(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.uint8) ^ 128
