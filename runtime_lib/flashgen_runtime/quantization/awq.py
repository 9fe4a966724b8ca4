"""AWQ, the "gemm" version: 4 bits in groups with zero points.

Eight outputs share a word, in an order of their own. The format's source is AutoAWQ, `awq/modules/linear/gemm.py` and
`awq/utils/packing_utils.py` (`dequantize_gemm`); what `config.json` says, transformers' `AwqConfig`.
"""

from dataclasses import dataclass

import torch

from flashgen_runtime.quantization.codes import Codes, Take, in_order, octets
from flashgen_runtime.quantization.scheme import SCALE_DTYPES, Precision, StoredTensor

BITS = 4
_PER_WORD = 32 // BITS

# Of the eight outputs of a word: the nibble that holds each.
_NIBBLE_OF_OUTPUT = [0, 4, 1, 5, 2, 6, 3, 7]


@dataclass(frozen=True, slots=True)
class AwqLayer:
    """A layer: `qweight` [K, N / 8], `qzeros` [G, N / 8], `scales` [G, N]."""

    precision: Precision
    ignored: tuple[str, ...] = ()

    def tensors(self, out_features: int, in_features: int) -> dict[str, StoredTensor]:
        num_groups, num_words = self.precision.num_groups(in_features), -(-out_features // _PER_WORD)
        return {
            "qweight": StoredTensor((in_features, num_words), ("I32",)),
            "qzeros": StoredTensor((num_groups, num_words), ("I32",)),
            "scales": StoredTensor((num_groups, out_features), SCALE_DTYPES),
        }

    def read(self, take: Take) -> Codes:
        scales = take("scales").float()
        num_outputs = scales.shape[1]
        codes, zeros = _by_output(take("qweight"))[:num_outputs], _by_output(take("qzeros"))[:num_outputs]
        group_of = in_order(codes.shape[1], self.precision.group_size)
        return Codes(values=codes, scales=scales, zeros=zeros.T, group_of=group_of)


def _by_output(words: torch.Tensor) -> torch.Tensor:
    """[outputs, rows], uint8, of [rows, words]."""
    found = octets(words.T)
    nibbles = [found[:, :, nibble // 2] >> 4 * (nibble % 2) & 15 for nibble in _NIBBLE_OF_OUTPUT]
    return torch.stack(nibbles, dim=1).flatten(0, 1)
