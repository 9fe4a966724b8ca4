"""Chooses the next token of every row by that row's own parameters, all rows at once.

Randomness is a function of a request's seed and the token's number, nothing else: the same seed gives the same text
alone, in any batch and after a preemption. For the same reason filters are thresholds on values, never on an order of
tokens, which a sort may leave open where values are equal.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from flashgen_runtime.engine.request import Request

# Below, scaled logits would leave float32's range; the result is greedy long before.
MIN_TEMPERATURE = 1e-5

# SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MASK_64 = (1 << 64) - 1


class SamplingRows(NamedTuple):
    """The `S` rows that are not greedy, those that filter first, and their parameters: [S] each, on the device."""

    rows: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor

    # The vocabulary's size where a row has none.
    top_k: torch.Tensor

    # In [0, 1), float64.
    uniform: torch.Tensor

    # On the host, so that nothing waits for the device: how many rows filter, and their largest top_k.
    num_filtered: int
    max_top_k: int


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """One token id per row.

    Args:
        logits: [R, V], float32, device.
        requests: the rows' requests.
    """
    token_ids = logits.argmax(dim=-1)
    drawn = [(row, request) for row, request in enumerate(requests) if not request.params.is_greedy]
    if drawn:
        parameters = _parameters(drawn, vocab_size=logits.shape[-1], device=logits.device)
        token_ids[parameters.rows] = _draw(logits[parameters.rows], parameters)
    # The step's one synchronisation with the device.
    result: list[int] = token_ids.tolist()
    return result


def uniform_of(seed: int, index: int) -> float:
    """A number in [0, 1) for token `index` of a completion: SplitMix64 at a place of its own, nothing is stored."""
    return (_mix64(_mix64(seed) + (index + 1) * GOLDEN_GAMMA) >> 11) / (1 << 53)


def _mix64(value: int) -> int:
    """SplitMix64's finaliser."""
    value &= MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


def _parameters(drawn: Sequence[tuple[int, Request]], *, vocab_size: int, device: torch.device) -> SamplingRows:
    """All parameters go to the device in one transfer."""
    ordered = sorted(drawn, key=lambda item: not _has_filter(item[1], vocab_size=vocab_size))
    top_ks = [min(request.params.top_k or vocab_size, vocab_size) for _, request in ordered]
    num_filtered = sum(_has_filter(request, vocab_size=vocab_size) for _, request in ordered)
    table = torch.tensor(
        [
            [row for row, _ in ordered],
            [max(request.params.temperature, MIN_TEMPERATURE) for _, request in ordered],
            [request.params.top_p for _, request in ordered],
            top_ks,
            [uniform_of(request.seed, request.num_completion_tokens) for _, request in ordered],
        ],
        dtype=torch.float64,
    )
    rows, temperature, top_p, top_k, uniform = table.to(device).unbind()
    return SamplingRows(
        rows.long(),
        temperature.float(),
        top_p.float(),
        top_k.long(),
        uniform,
        num_filtered=num_filtered,
        max_top_k=max(top_ks[:num_filtered], default=0),
    )


def _has_filter(request: Request, *, vocab_size: int) -> bool:
    return request.params.top_p < 1 or (request.params.top_k or vocab_size) < vocab_size


def _draw(logits: torch.Tensor, parameters: SamplingRows) -> torch.Tensor:
    """[S, V] → [S]: the token whose share of the cumulative distribution holds the row's uniform number."""
    # The largest logit becomes 0 first, so that a low temperature cannot overflow.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / parameters.temperature[:, None]
    if parameters.num_filtered:
        filtered = scaled[: parameters.num_filtered]
        filtered.masked_fill_(filtered < _threshold(filtered, parameters)[:, None], -torch.inf)
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    target = parameters.uniform[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return chosen.clamp_(max=logits.shape[-1] - 1)


def _threshold(scaled: torch.Tensor, parameters: SamplingRows) -> torch.Tensor:
    """[rows that filter]: the smallest value that each keeps; top_p looks at what top_k left, as in transformers."""
    top_k, top_p = parameters.top_k[: len(scaled), None], parameters.top_p[: len(scaled), None]
    # With a small top_k in every row the head of the order is enough.
    ordered = scaled.topk(parameters.max_top_k, dim=-1).values
    ranks = torch.arange(parameters.max_top_k, device=scaled.device)
    probabilities = ordered.masked_fill(ranks >= top_k, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    num_kept = ((before < top_p) & (ranks < top_k)).sum(dim=-1, keepdim=True)
    # Rounding may keep less than everything of a row without top_p.
    num_kept = torch.where(top_p < 1, num_kept, top_k)
    return ordered.gather(1, num_kept - 1).squeeze(-1)
