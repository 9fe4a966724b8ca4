"""Guesses how requests go on, so that one step verifies several tokens. Free of torch.

A guess costs rows of a step and nothing else: the engine samples every verified position as it would have without a
guess, and goes on as long as what it sampled is what was guessed. Here is who guesses, and whether it pays.
"""

from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flashgen_runtime.engine.request import Request

# Above this many running requests a step's rows are no longer almost free (measured: 8 rows 1.3 to 1.7 times one).
MOST_RUNNING = 8

# What a row more costs of a step of one row, before it has been measured.
ASSUMED_ROW_COST = 0.08

# How much a new measurement counts in a moving average.
WEIGHT = 0.2

# What guessing must gain by the model before it is done: the model is no better than its measurements.
LEAST_GAIN = 1.05

# Tokens without guesses after they did not pay; doubled each time, up to the limit.
FIRST_PAUSE, LONGEST_PAUSE = 16, 256

# The longest and the shortest ends of a text that are looked for earlier in it.
LONGEST_NGRAM, SHORTEST_NGRAM = 4, 2

# Tokens of a text that are looked through, from its end back.
NGRAM_WINDOW = 2048


class Proposer(Protocol):
    """Who guesses."""

    def propose(self, request: Request, count: int) -> list[int]:
        """The next tokens of a request as guessed: at most `count`, perhaps none."""


class NgramProposer:
    """Prompt lookup: what followed the last tokens when they stood in the text before."""

    def propose(self, request: Request, count: int) -> list[int]:
        token_ids = request.token_ids[-NGRAM_WINDOW:]
        for length in range(LONGEST_NGRAM, SHORTEST_NGRAM - 1, -1):
            if (place := _last_place(token_ids, length)) is not None:
                return token_ids[place : place + count]
        return []


class PredictionProposer:
    """Follows the text that a caller predicts; goes on behind a mismatch where both meet again."""

    def propose(self, request: Request, count: int) -> list[int]:
        predicted = request.predicted_ids
        if not predicted:
            return []
        completion = request.token_ids[request.num_prompt_tokens :]
        if not completion:
            return list(predicted[:count])
        if predicted[: len(completion)] == completion:
            return list(predicted[len(completion) : len(completion) + count])
        for length in range(min(LONGEST_NGRAM, len(completion)), 0, -1):
            if (place := _place_of(completion[-length:], predicted, near=len(completion))) is not None:
                return list(predicted[place : place + count])
        return []


@dataclass(slots=True)
class _Record:
    """What is known of one request."""

    # How often a guessed token behind right ones is right, a moving average; `None` before the first guess.
    acceptance: float | None = None
    pause: int = FIRST_PAUSE

    # Length of the text from which on guesses are made again.
    resume_at: int = 0


class Speculation:
    """Asks proposers in turn, as far as guessing pays.

    Args:
        proposers: the first that has a guess is taken.
        num_tokens: the longest guess.
        is_always: whether guesses are made without regard to what they cost, as tests want.
    """

    def __init__(self, proposers: Sequence[Proposer], *, num_tokens: int, is_always: bool = False) -> None:
        self._proposers = tuple(proposers)
        self._num_tokens = num_tokens
        self._is_always = is_always
        self._records: dict[Request, _Record] = defaultdict(_Record)

        # Of steps that only decode, by their number of rows.
        self._seconds: dict[int, float] = {}

        # Of all requests, with which a new one starts; the first one starts with hope.
        self._acceptance = 0.7
        self.num_proposed = 0
        self.num_accepted = 0

    def propose(self, request: Request, *, limit: int, num_running: int) -> list[int]:
        """A guess of at most `limit` tokens, and of none where it would not pay."""
        most = min(limit, self._num_tokens)
        count = self._best_count(request, most, num_running) if most > 0 else 0
        if count == 0:
            return []
        for proposer in self._proposers:
            if found := proposer.propose(request, count):
                return found
        return []

    def may_pay(self, num_running: int) -> bool:
        """Whether anybody's guess could pay beside so many requests."""
        return self._is_always or num_running <= MOST_RUNNING

    def note_step(self, num_rows: int, seconds: float) -> None:
        """A step that only decoded took so long."""
        before = self._seconds.get(num_rows, seconds)
        self._seconds[num_rows] = before + WEIGHT * (seconds - before)

    def note_result(self, request: Request, *, num_proposed: int, num_accepted: int) -> None:
        """How a request's guess went."""
        self.num_proposed += num_proposed
        self.num_accepted += num_accepted
        record = self._records[request]
        share = num_accepted / min(num_accepted + 1, num_proposed)
        before = self._acceptance if record.acceptance is None else record.acceptance
        record.acceptance = before + WEIGHT * (share - before)
        self._acceptance += WEIGHT * (share - self._acceptance)
        if num_accepted == num_proposed > 1:
            record.pause = FIRST_PAUSE

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self._records.pop(request, None)

    def _best_count(self, request: Request, most: int, num_running: int) -> int:
        """The length of the guess that gives most tokens a second, 0 where none gains anything."""
        if self._is_always:
            return most
        record = self._records[request]
        if len(request.token_ids) < record.resume_at:
            return 0
        if record.acceptance is None:
            record.acceptance = self._acceptance
        gains = {
            count: _expected_tokens(record.acceptance, count) / self._relative_cost(num_running, count)
            for count in range(1, most + 1)
        }
        best = max(gains, key=gains.__getitem__)
        if gains[best] >= LEAST_GAIN:
            return best
        # One guess of one token behind each pause: a text may turn into one that can be guessed.
        record.resume_at = len(request.token_ids) + record.pause
        record.pause = min(2 * record.pause, LONGEST_PAUSE)
        return 1

    def _relative_cost(self, num_running: int, count: int) -> float:
        """A step with a guess for one of the running requests, over a step without."""
        plain = self._seconds.get(num_running)
        more = [(rows, seconds) for rows, seconds in self._seconds.items() if rows > num_running]
        if plain is None or not more:
            return 1 + ASSUMED_ROW_COST * count
        # On the line through the two nearest measurements below and above, or beyond the last one.
        rows, seconds = min(more, key=lambda each: abs(each[0] - num_running - count))
        return 1 + max(0.0, seconds / plain - 1) * count / (rows - num_running)


def _expected_tokens(acceptance: float, count: int) -> float:
    """Tokens of a step whose guess of `count` tokens ends at the first wrong one."""
    return sum(acceptance**position for position in range(count + 1))


def _last_place(token_ids: Sequence[int], length: int) -> int | None:
    """Behind the latest earlier occurrence of the last `length` tokens."""
    text = array("i", token_ids)
    data, tail = text.tobytes(), text[-length:].tobytes()
    found = data.rfind(tail, 0, len(data) - text.itemsize)
    while found >= 0 and found % text.itemsize:
        # Bytes of neighbours that only look like a token.
        found = data.rfind(tail, 0, found + len(tail) - 1)
    return None if found < 0 else found // text.itemsize + length


def _place_of(tail: Sequence[int], text: Sequence[int], *, near: int) -> int | None:
    """Behind the occurrence of `tail` in `text` that ends nearest to `near`."""
    length = len(tail)
    ends = [end for end in range(length, len(text)) if text[end - length : end] == tail]
    return min(ends, key=lambda end: abs(end - near), default=None)
