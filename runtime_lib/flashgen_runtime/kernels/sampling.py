"""Chooses tokens from rows of logits, each row by its own parameters: penalties, biases, masks, filters, the draw.

Semantics are those of transformers' logits processors and warpers, in their order; the presence and the frequency
penalty are OpenAI's. Filters are thresholds on values: of equal logits all stay or none. A row's result depends on
nothing but the row. NaN counts as impossible, infinity as float32's largest number.
"""

import ctypes
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from flashgen_runtime.kernels import sampling_twin
from flashgen_runtime.kernels.library import CSamplingRow, address, library

# Below, scaled logits would leave float32's range; the result is greedy long before.
MIN_TEMPERATURE = 1e-5


@dataclass(slots=True, kw_only=True)
class SamplingRow:
    """How the token of one row is chosen. The defaults change and filter nothing."""

    # 0: the largest logit is taken.
    temperature: float = 1.0

    # `None` or the vocabulary's size: all.
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0

    # In [0, 1): which part of the distribution is drawn.
    uniform: float = 0.0

    # Tokens that occurred, each once, and how often each is in the completion, int64: their logits are divided by the
    # repetition penalty, or multiplied where negative; then what the completion has is subtracted.
    counted_ids: "array[int]" = field(default_factory=lambda: array("q"))
    counts: "array[int]" = field(default_factory=lambda: array("q"))
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    # Token ids, int64, and what is added to their logits, float32.
    biased_ids: "array[int]" = field(default_factory=lambda: array("q"))
    biases: "array[float]" = field(default_factory=lambda: array("f"))

    # ceil(V / 32) words of 32 bits: token i is allowed if bit i % 32 of word i // 32 is set. `None`: all.
    mask: bytearray | None = None

    # How many best tokens to report with the log probability of the chosen one; `None`: report nothing.
    num_best: int | None = None

    @property
    def is_changed(self) -> bool:
        """Whether anything happens to the logits before the filters."""
        return bool(self.counted_ids or self.biased_ids or self.mask is not None)

    @property
    def inverse_temperature(self) -> float:
        return math.inf if self.temperature == 0 else 1 / max(self.temperature, MIN_TEMPERATURE)

    @property
    def log_min_p(self) -> float:
        return math.log(self.min_p) if self.min_p > 0 else -math.inf


class Choice(NamedTuple):
    """The token chosen for a row; log probabilities are those of the logits as they came."""

    token_id: int

    # `None` unless asked for.
    logprob: float | None

    # Token ids and log probabilities, best first; of equals the lower id first.
    best: list[tuple[int, float]]


class Candidates(NamedTuple):
    """The best tokens of each row, best first."""

    # [R, C], float32.
    log_probs: torch.Tensor

    # [R, C], int64.
    token_ids: torch.Tensor


def sample(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[Choice]:
    """One token per row.

    A row without any possible token gives the lowest id that its mask allows.

    Args:
        logits: [R, V], float32, device; values of a row side by side. Not changed.
        rows: R.
    """
    kernels = library() if logits.device.type == "cpu" else None
    if kernels is None:
        return [Choice(*choice) for choice in sampling_twin.sample(logits, rows)]
    num_best = max((row.num_best or 0 for row in rows), default=0)
    best = _empty_candidates(len(rows), num_best)
    c_rows = _c_rows(rows, vocab_size=logits.shape[-1], best=best)
    _run(kernels.sample, logits, c_rows)
    return list(_choices(rows, c_rows, best))


def beam_candidates(logits: torch.Tensor, rows: Sequence[SamplingRow], count: int) -> Candidates:
    """The `count` best tokens of each row by log probability; all where the vocabulary has fewer.

    As in transformers' beam search, penalties, biases and masks change the log probabilities of the logits, which are
    not normalised again. Filters do not apply.

    Args:
        logits: as in `sample`.
        rows: R; temperatures, filters and `uniform` are not read.
        count: C.
    """
    count = min(count, logits.shape[-1])
    kernels = library() if logits.device.type == "cpu" else None
    if kernels is None:
        return Candidates(*sampling_twin.beam_candidates(logits, rows, count))
    candidates = _empty_candidates(len(rows), count)
    c_rows = _c_rows(rows, vocab_size=logits.shape[-1], best=candidates)
    for c_row in c_rows:
        c_row.num_best = count
    _run(kernels.beam_candidates, logits, c_rows)
    return candidates


def _run(function: Any, logits: torch.Tensor, c_rows: "ctypes.Array[CSamplingRow]") -> None:
    assert logits.dtype == torch.float32, f"logits are {logits.dtype}"
    assert logits.stride(1) == 1 or logits.shape[1] == 1, "the values of a row are not side by side"
    function(address(logits), logits.stride(0), logits.shape[1], c_rows, len(c_rows))


def _empty_candidates(num_rows: int, count: int) -> Candidates:
    return Candidates(torch.empty(num_rows, count), torch.empty(num_rows, count, dtype=torch.int64))


def _c_rows(rows: Sequence[SamplingRow], *, vocab_size: int, best: Candidates) -> "ctypes.Array[CSamplingRow]":
    """The rows as C structs; valid as long as `rows` and `best` live and do not change."""
    c_rows = (CSamplingRow * len(rows))()
    log_probs, token_ids = best.log_probs.data_ptr(), best.token_ids.data_ptr()
    width = best.token_ids.shape[1]
    for index, (row, c_row) in enumerate(zip(rows, c_rows, strict=True)):
        c_row.inverse_temperature = row.inverse_temperature
        c_row.top_k = row.top_k or 0
        c_row.top_p = row.top_p
        c_row.log_min_p = row.log_min_p
        c_row.typical_p = row.typical_p
        c_row.uniform = row.uniform
        if row.num_best is not None:
            c_row.has_logprobs = 1
            c_row.num_best = min(row.num_best, vocab_size)
        c_row.best_logprobs = log_probs + 4 * width * index
        c_row.best_ids = token_ids + 8 * width * index
        if row.is_changed:
            _set_changes(c_row, row)
    return c_rows


def _set_changes(c_row: CSamplingRow, row: SamplingRow) -> None:
    c_row.repetition_penalty = row.repetition_penalty
    c_row.presence_penalty = row.presence_penalty
    c_row.frequency_penalty = row.frequency_penalty
    c_row.counted_ids, c_row.num_counted = row.counted_ids.buffer_info()
    c_row.counts = row.counts.buffer_info()[0]
    c_row.biased_ids, c_row.num_biased = row.biased_ids.buffer_info()
    c_row.biases = row.biases.buffer_info()[0]
    if row.mask is not None:
        c_row.mask = ctypes.addressof(ctypes.c_char.from_buffer(row.mask))


def _choices(rows: Sequence[SamplingRow], c_rows: "ctypes.Array[CSamplingRow]", best: Candidates) -> Iterator[Choice]:
    for index, (row, c_row) in enumerate(zip(rows, c_rows, strict=True)):
        if row.num_best is None:
            yield Choice(c_row.token_id, None, [])
        else:
            num_best = c_row.num_best
            token_ids = best.token_ids[index, :num_best].tolist()
            log_probs = best.log_probs[index, :num_best].tolist()
            yield Choice(c_row.token_id, c_row.logprob, list(zip(token_ids, log_probs, strict=True)))
