"""Makes one unit vector of each text's token vectors."""

from itertools import accumulate
from typing import Literal

import torch
from torch.nn.functional import normalize

Pooling = Literal["mean", "cls"]


def pool(hidden: torch.Tensor, lengths: list[int], pooling: Pooling) -> list[bytes]:
    """One vector for each text: little-endian float32 values, of length 1 as a vector.

    Args:
        hidden: [T, hidden_size], the texts' tokens one after another.
        lengths: tokens of each text, all positive.
        pooling: the mean of a text's tokens, or its first token.
    """
    if pooling == "cls":
        pooled = hidden[[0, *accumulate(lengths)][:-1]].float()
    else:
        pooled = torch.segment_reduce(hidden.float(), "mean", lengths=torch.tensor(lengths, device=hidden.device))
    vectors = normalize(pooled, dim=-1).cpu().numpy().astype("<f4", copy=False)
    return [vector.tobytes() for vector in vectors]
