"""Chooses the next token of every row by that row's own request, all rows at once.

Randomness is a function of a request's seed and the token's number, nothing else: the same seed gives the same text
alone, in any batch and after a preemption. What happens to the numbers is `kernels.sampling`'s part.
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch

from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.structured import allowed_words
from flashgen_runtime.engine.token_counts import TokenCounts
from flashgen_runtime.kernels import sampling
from flashgen_runtime.kernels.sampling import SamplingRow

# SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MASK_64 = (1 << 64) - 1


class TokenLogprobs(NamedTuple):
    """Log probabilities by the model's own logits, before penalties, temperature and filters."""

    # Of the chosen token.
    logprob: float

    # The best tokens with theirs, as many as the request asks for, best first.
    top: list[tuple[int, float]]


class SampledToken(NamedTuple):
    """The next token of one request."""

    token_id: int

    # `None` unless the request asks.
    logprobs: TokenLogprobs | None


class Sampler:
    """Keeps what sampling knows about requests from step to step; forgets those that are finished by itself."""

    def __init__(self) -> None:
        # Of requests with penalties or biases.
        self._changes: dict[Request, _Changes] = {}

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[SampledToken]:
        """One token per row; tells the requests' token masks.

        Args:
            logits: [R, V], float32, device; not changed.
            requests: the rows' requests.
        """
        self._forget_finished(len(requests))
        rows = [self._row(request, vocab_size=logits.shape[-1]) for request in requests]
        choices = sampling.sample(logits, rows)
        for request, choice in zip(requests, choices, strict=True):
            if request.token_mask is not None:
                request.token_mask.accept(choice.token_id)
        return [
            SampledToken(token_id, None if logprob is None else TokenLogprobs(logprob, best))
            for token_id, logprob, best in choices
        ]

    def beam_candidates(
        self, logits: torch.Tensor, beams: Sequence[Request], count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The `count` best next tokens of each beam, or the whole vocabulary: log probabilities and token ids.

        Penalties, biases and masks change the log probabilities, as in transformers. A mask is not told which token
        its beam goes on with.

        Returns:
            [R, C], float32, and [R, C], int64, on the CPU, best first.
        """
        rows = [_beam_row(beam, vocab_size=logits.shape[-1]) for beam in beams]
        return sampling.beam_candidates(logits, rows, count)

    def _row(self, request: Request, *, vocab_size: int) -> SamplingRow:
        params = request.params
        row = SamplingRow(temperature=params.temperature, num_best=params.logprobs)
        if not params.is_greedy:
            row.top_k = params.top_k
            row.top_p = params.top_p
            row.min_p = params.min_p
            row.typical_p = params.typical_p
            row.uniform = uniform_of(request.seed, request.num_completion_tokens)
        if params.changes_logits:
            changes = self._changes.get(request)
            if changes is None:
                changes = self._changes[request] = _Changes(request)
            changes.apply_to(row)
        _apply_mask(row, request, vocab_size=vocab_size)
        return row

    def _forget_finished(self, num_rows: int) -> None:
        """Looks through what is kept only once it is much more than the rows of a step."""
        if len(self._changes) > 2 * num_rows + 64:
            self._changes = {request: kept for request, kept in self._changes.items() if not request.is_finished}


class _Changes:
    """What happens to one request's logits, apart from its mask."""

    def __init__(self, request: Request) -> None:
        params = request.params
        self._params = params
        self._biased_ids = array("q", [token_id for token_id, _ in params.logit_bias])
        self._biases = array("f", [bias for _, bias in params.logit_bias])
        with_prompt = params.repetition_penalty != 1
        is_counted = with_prompt or params.presence_penalty != 0 or params.frequency_penalty != 0
        self._counts = TokenCounts(request, with_prompt=with_prompt) if is_counted else None

    def apply_to(self, row: SamplingRow) -> None:
        row.biased_ids, row.biases = self._biased_ids, self._biases
        if self._counts is not None:
            self._counts.update()
            row.counted_ids, row.counts = self._counts.token_ids, self._counts.counts
            row.repetition_penalty = self._params.repetition_penalty
            row.presence_penalty = self._params.presence_penalty
            row.frequency_penalty = self._params.frequency_penalty


def uniform_of(seed: int, index: int) -> float:
    """A number in [0, 1) for token `index` of a completion: SplitMix64 at a place of its own, nothing is stored."""
    return (_mix64(_mix64(seed) + (index + 1) * GOLDEN_GAMMA) >> 11) / (1 << 53)


def choice_seed(seed: int, index: int) -> int:
    """The seed of one choice of a request: the first choice is what the request would get alone."""
    return seed if index == 0 else _mix64(_mix64(seed) ^ index * GOLDEN_GAMMA)


def _mix64(value: int) -> int:
    """SplitMix64's finaliser."""
    value &= MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


def _beam_row(beam: Request, *, vocab_size: int) -> SamplingRow:
    # Beams are new requests in every step: nothing is kept for them.
    row = SamplingRow()
    if beam.params.changes_logits:
        _Changes(beam).apply_to(row)
    _apply_mask(row, beam, vocab_size=vocab_size)
    return row


def _apply_mask(row: SamplingRow, request: Request, *, vocab_size: int) -> None:
    if request.token_mask is not None:
        row.mask = allowed_words(request.token_mask, vocab_size=vocab_size, eos_ids=request.eos_ids)
