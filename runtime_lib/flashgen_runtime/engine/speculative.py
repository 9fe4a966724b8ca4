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

    # Accepted per proposed token, a moving average; it starts with hope.
    acceptance: float = 0.8
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
        self.num_proposed = 0
        self.num_accepted = 0

    def propose(self, request: Request, *, limit: int, num_running: int) -> list[int]:
        """A guess of at most `limit` tokens, and of none where it would not pay."""
        count = min(limit, self._num_tokens)
        if count <= 0 or not self._pays(request, count, num_running):
            return []
        for proposer in self._proposers:
            if found := proposer.propose(request, count):
                return found
        return []

    def note_step(self, num_rows: int, seconds: float) -> None:
        """A step that only decoded took so long."""
        before = self._seconds.get(num_rows, seconds)
        self._seconds[num_rows] = before + WEIGHT * (seconds - before)

    def note_result(self, request: Request, *, num_proposed: int, num_accepted: int) -> None:
        """How a request's guess went."""
        self.num_proposed += num_proposed
        self.num_accepted += num_accepted
        record = self._records[request]
        record.acceptance += WEIGHT * (num_accepted / num_proposed - record.acceptance)
        if num_accepted == num_proposed:
            record.pause = FIRST_PAUSE

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self._records.pop(request, None)

    def _pays(self, request: Request, count: int, num_running: int) -> bool:
        if self._is_always:
            return True
        record = self._records[request]
        if num_running > MOST_RUNNING or len(request.token_ids) < record.resume_at:
            return False
        if 1 + record.acceptance * count >= LEAST_GAIN * self._relative_cost(num_running, count):
            return True
        # The next try has a little hope, so that a few good guesses keep it going.
        record.resume_at = len(request.token_ids) + record.pause
        record.pause = min(2 * record.pause, LONGEST_PAUSE)
        record.acceptance = 0.5
        return False

    def _relative_cost(self, num_running: int, count: int) -> float:
        """A step with a guess for each running request, over a step without."""
        plain = self._seconds.get(num_running)
        with_guesses = self._seconds.get(num_running * (1 + count))
        if plain is None or with_guesses is None:
            return 1 + ASSUMED_ROW_COST * num_running * count
        return with_guesses / plain


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
