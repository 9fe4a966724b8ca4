"""Beam search: which beams go on, and which completions are the best so far. Free of torch; leaves blocks to others.

The same as transformers' `generate(num_beams=..., do_sample=False, early_stopping=False)`, in float32:

- Each step looks at the best continuations of all beams together, so many that `num_beams` of them do not end.
- A continuation ends by an end-of-sequence token or at `max_tokens`. One that is among the step's `num_beams` best
  competes with the completions found before; its score is divided by length ** length_penalty.
- The search ends when `num_beams` completions are found and the best running beam, were it to end now, would not
  beat the worst of them; or when no beam can go on.
"""

from typing import NamedTuple

import numpy as np

from flashgen_runtime.engine.request import Request
from flashgen_runtime.messages import FinishReason

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Continuation(NamedTuple):
    """A beam and the token that extends it."""

    beam: Request
    token_id: int

    # Log probability of the completion.
    score: np.float32


class Completion(NamedTuple):
    """A completion that a beam search found, without its prompt."""

    token_ids: list[int]
    finish_reason: FinishReason


class _Scored(NamedTuple):
    score: np.float32
    completion: Completion


class BeamSearch:
    """The search that one request asks for.

    `beams` starts with the request itself, until its prompt is computed; then the scheduler makes requests of what
    `advance` returns and puts them there, in the same order.
    """

    def __init__(self, request: Request) -> None:
        params = request.params
        self.request = request
        self.beams = [request]
        self.is_done = False

        # Continuations that each step looks at; each end-of-sequence id may end all beams at once.
        self.num_candidates = max(2, 1 + len(request.eos_ids)) * params.num_beams
        self._num_beams = params.num_beams
        self._length_penalty = params.length_penalty
        self._max_tokens = params.max_tokens

        # Length and scores of the beams' completions.
        self._num_tokens = 0
        self._scores = np.zeros(1, dtype=np.float32)

        # At most `num_beams`, best first.
        self._best: list[_Scored] = []

    @property
    def completions(self) -> list[Completion]:
        """The best found so far, best first; `num_beams` in the end, fewer only where a token mask allows fewer."""
        return [scored.completion for scored in self._best]

    def advance(self, log_probs: Floats, token_ids: Ints) -> list[Continuation]:
        """Takes one step; returns the next step's beams, best first, and none of them when the search is done.

        Args:
            log_probs: [len(beams), C], float32, C >= num_candidates unless the vocabulary is smaller.
            token_ids: [len(beams), C], those of `log_probs`.
        """
        self._num_tokens += 1
        continuations = self._best_continuations(log_probs, token_ids)
        running = [each for each in continuations if not self._ends(each.token_id)][: self._num_beams]
        self._keep_best([each for each in continuations[: self._num_beams] if self._ends(each.token_id)])
        self._scores = np.array([each.score for each in running], dtype=np.float32)
        self.is_done = not running or not self._can_improve()
        return [] if self.is_done else running

    def _best_continuations(self, log_probs: Floats, token_ids: Ints) -> list[Continuation]:
        """Best first; none that a token mask forbids."""
        scores = (log_probs + self._scores[:, None]).ravel()
        best = np.argsort(-scores, kind="stable")[: self.num_candidates]
        best = best[np.isfinite(scores[best])]
        beams = (best // log_probs.shape[1]).tolist()
        chosen_ids = token_ids.ravel()[best].tolist()
        return [
            Continuation(self.beams[beam], token_id, score)
            for beam, token_id, score in zip(beams, chosen_ids, scores[best], strict=True)
        ]

    def _ends(self, token_id: int) -> bool:
        return token_id in self.request.eos_ids or self._num_tokens == self._max_tokens

    def _keep_best(self, ended: list[Continuation]) -> None:
        """Continuations that end compete with the completions found before; of equals the first found stays first."""
        divisor = np.float32(self._num_tokens**self._length_penalty)
        scored = [_Scored(each.score / divisor, _completion(each)) for each in ended]
        self._best = sorted(self._best + scored, key=lambda each: -each.score)[: self._num_beams]

    def _can_improve(self) -> bool:
        """Whether the best running beam could still replace one of the completions."""
        if len(self._best) < self._num_beams:
            return True
        best_possible = self._scores[0] / np.float32(self._num_tokens**self._length_penalty)
        return bool(best_possible > self._best[-1].score)


def _completion(continuation: Continuation) -> Completion:
    beam, token_id, _ = continuation
    token_ids = [*beam.token_ids[beam.num_prompt_tokens :], token_id]
    return Completion(token_ids, "stop" if token_id in beam.eos_ids else "length")
