"""GPTQ: 4 or 8 bits, in groups or one scale per output, with or without act order.

Neighbouring inputs share a word, neighbouring outputs share one of the zeros'. In the first version of the format zeros
are stored less one, as whole words: what is added to them carries over, as in `convert_gptq_v1_to_v2_format_module` of
GPTQModel, `gptqmodel/utils/model.py`. The layer is that of its `gptqmodel/nn_modules/qlinear/torch.py`; what
`config.json` says, transformers' `GPTQConfig`.
"""

from dataclasses import dataclass

import torch

from flashgen_runtime.quantization.codes import Codes, CodesError, Take, in_order, unpack
from flashgen_runtime.quantization.scheme import SCALE_DTYPES, Precision, StoredTensor

# What is added to a word of zeros of the first version.
_ONES = {4: 0x11111111, 8: 0x01010101}


@dataclass(frozen=True, slots=True)
class GptqLayer:
    """A layer: `qweight` [K * bits / 32, N], `qzeros` [G, N * bits / 32], `scales` [G, N], `g_idx` [K]."""

    precision: Precision

    # Whether zeros are stored as they are: the format's second version.
    has_plain_zeros: bool
    ignored: tuple[str, ...] = ()

    def tensors(self, out_features: int, in_features: int) -> dict[str, StoredTensor]:
        bits, num_groups = self.precision.bits, self.precision.num_groups(in_features)
        return {
            "qweight": StoredTensor((-(-in_features * bits // 32), out_features), ("I32",)),
            "qzeros": StoredTensor((num_groups, -(-out_features * bits // 32)), ("I32",)),
            "scales": StoredTensor((num_groups, out_features), SCALE_DTYPES),
            "g_idx": StoredTensor((in_features,), ("I32", "I64")),
        }

    def read(self, take: Take) -> Codes:
        bits = self.precision.bits
        scales, group_of = take("scales").float(), take("g_idx").long()
        words = take("qzeros")
        zeros = unpack(words if self.has_plain_zeros else words + _ONES[bits], bits)[:, : scales.shape[1]]
        self._check(group_of, zeros)
        return Codes(
            values=unpack(take("qweight").T, bits)[:, : len(group_of)],
            scales=scales,
            zeros=zeros,
            group_of=group_of,
        )

    def _check(self, group_of: torch.Tensor, zeros: torch.Tensor) -> None:
        """What the configuration says is what the kernels are chosen by."""
        if group_of.numel() and not 0 <= int(group_of.min()) <= int(group_of.max()) < len(zeros):
            raise CodesError(f"`g_idx` names the group {int(group_of.max())} of {len(zeros)}")
        expected = in_order(len(group_of), self.precision.group_size)
        if self.precision.is_in_order and not torch.equal(group_of, expected):
            raise CodesError("`g_idx` orders the inputs, and `desc_act` says that it does not")
        if self.precision.is_symmetric and not bool((zeros == 1 << self.precision.bits - 1).all()):
            raise CodesError("`qzeros` are not the middle of the range, and `sym` says that they are")
