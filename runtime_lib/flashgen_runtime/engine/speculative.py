"""Guesses how requests go on, so that one step verifies several tokens. Free of torch.

A guess costs rows of a step and nothing else: the engine samples every verified position as it would have without a
guess, and goes on as long as what it sampled is what was guessed. Here is who guesses, and whether it pays.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.step_costs import StepCosts

# Above this many running requests a step's rows are no longer almost free (measured: 8 rows 1.3 to 1.7 times one).
MOST_RUNNING = 8

# How often a guessed token behind right ones is right, before anything is known.
ASSUMED_ACCEPTANCE = 0.5

# How much a new result counts in a moving average.
WEIGHT = 0.3

# What guessing must gain by the costs known before it is done: they are no better than their measurements.
LEAST_GAIN = 1.05

# Tokens without guesses after they did not pay; doubled each time, up to the limit.
FIRST_PAUSE, LONGEST_PAUSE = 16, 256

# Costs and acceptances that the choice of a length distinguishes: it is made anew after so many steps, for acceptances
# that far apart.
STEPS_OF_A_CHOICE = 16
ACCEPTANCE_STEPS = 20

# The longest and the shortest ends of a text that are looked for earlier in it.
LONGEST_NGRAM, SHORTEST_NGRAM = 4, 2


class Proposer(Protocol):
    """Who guesses."""

    def propose(self, wishes: Mapping[Request, int]) -> dict[Request, list[int]]:
        """The next tokens of decoding requests as guessed.

        Args:
            wishes: how many tokens at most, for each request.

        Returns:
            Guesses of at least one token, of those requests for which there is one.
        """

    def forget(self, request: Request) -> None:
        """The request has ended."""

    def close(self) -> None:
        """Gives back what it holds; there are no calls afterwards."""


class NgramProposer:
    """Prompt lookup: what followed the last tokens when they stood in the text before."""

    def __init__(self) -> None:
        self._texts: dict[Request, _NgramIndex] = {}

    def propose(self, wishes: Mapping[Request, int]) -> dict[Request, list[int]]:
        found = {}
        for request, count in wishes.items():
            index = self._texts.setdefault(request, _NgramIndex())
            if (place := index.place_behind_end(request.token_ids)) is not None:
                found[request] = request.token_ids[place : place + count]
        return found

    def forget(self, request: Request) -> None:
        self._texts.pop(request, None)

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _NgramIndex:
    """Where the n-grams of one growing text stood last, without the one at its end."""

    # Behind the n-gram, by its tokens.
    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_indexed: int = 0

    def place_behind_end(self, token_ids: Sequence[int]) -> int | None:
        """Behind the latest earlier occurrence of the longest end that has one."""
        for end in range(max(self.num_indexed, SHORTEST_NGRAM), len(token_ids)):
            for length in range(SHORTEST_NGRAM, min(LONGEST_NGRAM, end) + 1):
                self.places[tuple(token_ids[end - length : end])] = end
        self.num_indexed = len(token_ids)
        for length in range(min(LONGEST_NGRAM, len(token_ids)), SHORTEST_NGRAM - 1, -1):
            if (place := self.places.get(tuple(token_ids[-length:]))) is not None:
                return place
        return None


class PredictionProposer:
    """Follows the text that a caller predicts; goes on behind a mismatch where both meet again."""

    def propose(self, wishes: Mapping[Request, int]) -> dict[Request, list[int]]:
        found = {}
        for request, count in wishes.items():
            if request.predicted_ids and (guess := _predicted(request, count)):
                found[request] = guess
        return found

    def forget(self, request: Request) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _Record:
    """What is known of one request."""

    acceptance: float
    pause: int = FIRST_PAUSE

    # Length of the text from which on guesses are made again.
    resume_at: int = 0


class Speculation:
    """Asks proposers in turn, as far as guessing pays.

    Args:
        proposers: the first that has a guess for a request is taken; in a tree all that have one.
        num_tokens: the longest guess.
        is_tree: whether different guesses for one request are verified beside each other.
        is_always: whether guesses are made without regard to what they cost, as tests want.
    """

    def __init__(
        self, proposers: Sequence[Proposer], *, num_tokens: int, is_tree: bool = False, is_always: bool = False
    ) -> None:
        self._proposers = tuple(proposers)
        self._num_tokens = num_tokens
        self._is_tree = is_tree
        self._is_always = is_always
        self._records: dict[Request, _Record] = {}
        self._costs = StepCosts()

        # Lengths by acceptance and number of running requests, since the costs were last looked at.
        self._choices: dict[tuple[int, int], int] = {}
        self._num_steps = 0

        # Of all requests, with which a new one starts.
        self._acceptance = ASSUMED_ACCEPTANCE
        self.num_proposed = 0
        self.num_accepted = 0

    def may_pay(self, num_running: int) -> bool:
        """Whether anybody's guess could pay beside so many requests."""
        return self._is_always or (num_running <= MOST_RUNNING and self._costs.is_known)

    def num_rows(self, num_tokens: int) -> int:
        """Rows that a guess of so many tokens takes at most, beside the one of the request's newest token."""
        num_others = len(self._proposers) - 1 if self._is_tree and num_tokens else 0
        return num_tokens + num_others * (num_tokens + 1)

    def wish(self, request: Request, *, max_tokens: int, max_rows: int, num_running: int) -> int:
        """Tokens that should be guessed for a request, 0 where no guess would pay."""
        if max_rows < self.num_rows(1) or max_tokens < 1:
            return 0
        if self._is_always:
            best = self._num_tokens
        else:
            record = self._record(request)
            if len(request.token_ids) < record.resume_at:
                return 0
            best = self._best(record.acceptance, num_running) or self._pause(request, record)
        best = min(best, max_tokens)
        while self.num_rows(best) > max_rows:
            best -= 1
        return best

    def propose(self, wishes: Mapping[Request, int]) -> dict[Request, list[list[int]]]:
        """Guesses for requests, as many tokens as `wish` said; several, all different, in a tree only."""
        started = perf_counter()
        guesses: dict[Request, list[list[int]]] = {}
        for proposer in self._proposers:
            open_wishes = wishes if self._is_tree else {r: count for r, count in wishes.items() if r not in guesses}
            if not open_wishes:
                break
            for request, guess in proposer.propose(open_wishes).items():
                guesses.setdefault(request, []).append(guess)
        if guesses:
            self._costs.note_guesses(max(wishes.values()), perf_counter() - started)
        return {request: _distinct(found) for request, found in guesses.items()}

    def note_step(self, num_rows: int, seconds: float) -> None:
        """A step that only decoded took so long."""
        self._costs.note_step(num_rows, seconds)
        self._num_steps += 1
        if self._num_steps % STEPS_OF_A_CHOICE == 0:
            self._choices.clear()

    def note_result(self, request: Request, *, num_rows: int, longest: int, num_accepted: int) -> None:
        """How the guesses for a request went.

        Args:
            request: theirs.
            num_rows: tokens that were verified for it.
            longest: tokens of the longest guess.
            num_accepted: tokens that were right.
        """
        self.num_proposed += num_rows
        self.num_accepted += num_accepted
        record = self._record(request)
        share = num_accepted / min(num_accepted + 1, longest)
        record.acceptance += WEIGHT * (share - record.acceptance)
        self._acceptance += WEIGHT * (share - self._acceptance)
        if num_accepted == longest > 1:
            record.pause = FIRST_PAUSE

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self._records.pop(request, None)
        for proposer in self._proposers:
            proposer.forget(request)

    def close(self) -> None:
        """Gives back what the proposers hold."""
        for proposer in self._proposers:
            proposer.close()

    def _record(self, request: Request) -> _Record:
        if request not in self._records:
            self._records[request] = _Record(self._acceptance)
        return self._records[request]

    def _pause(self, request: Request, record: _Record) -> int:
        """One guess of one token, then none for a while: a text may turn into one that can be guessed."""
        record.resume_at = len(request.token_ids) + record.pause
        record.pause = min(2 * record.pause, LONGEST_PAUSE)
        return 1

    def _best(self, acceptance: float, num_running: int) -> int:
        """The length that gives most tokens a second, 0 where none gains anything; computed now and then."""
        key = round(ACCEPTANCE_STEPS * acceptance), num_running
        if key not in self._choices:
            gains = [self._gain(key[0] / ACCEPTANCE_STEPS, count, num_running) for count in range(self._num_tokens + 1)]
            best = max(range(len(gains)), key=gains.__getitem__)
            self._choices[key] = best if gains[best] >= LEAST_GAIN else 0
        return self._choices[key]

    def _gain(self, acceptance: float, count: int, num_running: int) -> float:
        """Tokens a second with guesses of `count` tokens for all running requests, over those without."""
        return _expected_tokens(acceptance, count) / self._costs.relative(
            num_running, num_rows=num_running * (1 + self.num_rows(count)), num_guessed=count
        )


def _expected_tokens(acceptance: float, count: int) -> float:
    """Tokens of a step whose guess of `count` tokens ends at the first wrong one."""
    return sum(acceptance**position for position in range(count + 1))


def _distinct(guesses: Iterable[list[int]]) -> list[list[int]]:
    """Without those that another one begins with."""
    found: list[list[int]] = []
    for guess in sorted(guesses, key=len, reverse=True):
        if not any(other[: len(guess)] == guess for other in found):
            found.append(guess)
    return found


def _predicted(request: Request, count: int) -> list[int]:
    """The next tokens by what the caller predicts."""
    predicted, num_prompt = request.predicted_ids, request.num_prompt_tokens
    completion = request.token_ids[num_prompt:]
    if predicted[: len(completion)] == completion:
        return predicted[len(completion) : len(completion) + count]
    for length in range(min(LONGEST_NGRAM, len(completion)), 0, -1):
        if (place := _place_of(completion[-length:], predicted, near=len(completion))) is not None:
            return predicted[place : place + count]
    # The newest token may stand in the place of one that was predicted.
    if (place := _place_of(completion[-3:-1], predicted, near=len(completion) - 1)) is not None:
        return predicted[place + 1 : place + 1 + count]
    return []


def _place_of(tail: Sequence[int], text: Sequence[int], *, near: int) -> int | None:
    """Behind the occurrence of `tail` in `text` that ends nearest to `near`."""
    length = len(tail)
    ends = [end for end in range(length, len(text)) if text[end - length : end] == tail]
    return min(ends, key=lambda end: abs(end - near), default=None)
