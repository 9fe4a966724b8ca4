"""Decides what each step computes, and keeps account of the requests' tokens. Free of torch.

First come, first served. A step decodes every running request, then fills the token budget with chunks of prompts.
A request starts when its blocks are free beside one for the growth of each running request; should the blocks run out
later, the newest running request gives all of its own back and is computed again when there is room. Its tokens stay,
so nothing is lost. The oldest request always gets on, hence every request ends.

Requests share the blocks of equal beginnings (`engine.prefix_cache`). One whose beginning a running request is about
to compute waits for that instead of computing it too.

The beams of a beam search start, decode and are preempted together. After a preemption they are computed one after the
other, so that each finds what it shares with those before it, and decode again when the last has caught up.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flashgen_runtime.engine.beam_search import BeamSearch, Floats, Ints
from flashgen_runtime.engine.block_tables import BlockTables
from flashgen_runtime.engine.prefix_cache import PrefixMatch
from flashgen_runtime.engine.request import Request, RequestState
from flashgen_runtime.engine.speculative import Speculation
from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import FinishReason

# Prompts that may be under way although the first of them fill the budget, so that a short one behind long ones has
# its turn.
MAX_LONG_PROMPTS = 4


class Chunk(NamedTuple):
    """The next `num_tokens` tokens of a request that a step computes."""

    request: Request
    num_tokens: int

    @property
    def reaches_end(self) -> bool:
        """Whether the step gives the request a new token."""
        return self.num_tokens == self.request.num_uncomputed_tokens + len(self.request.proposed_ids)

    @property
    def gives_token(self) -> bool:
        """Whether a token is drawn for it: beams have candidates instead, and a branch counts where it is right."""
        return self.reaches_end and self.request.beam_search is None and self.request.branch_of is None


class Schedule(NamedTuple):
    """One step's work."""

    # Decodes, then chunks of prompts.
    chunks: list[Chunk]

    # Blocks that are copied before anything is computed: source and target.
    copies: list[tuple[int, int]]


@dataclass(slots=True)
class _Draft:
    """The running requests' part of a step while it is made."""

    decodes: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)

    # Requests and beams with more than one token to compute, oldest first.
    prompts: list[Request] = field(default_factory=list)


class Scheduler:
    """Owns the requests; `schedule` and `update` alternate, `finish` may come between steps.

    Args:
        tables: gives blocks to the requests.
        max_num_seqs: requests that run together; a beam counts as one.
        max_num_batched_tokens: tokens of one step.
        can_chunk: whether a prompt may be computed in several steps; else a long one exceeds the budget.
        is_static: whether requests start only when none runs.
        speculation: guesses tokens that a step verifies besides.
    """

    def __init__(
        self,
        tables: BlockTables,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        can_chunk: bool = True,
        is_static: bool = False,
        speculation: Speculation | None = None,
    ) -> None:
        self._speculation = speculation
        self._tables = tables
        self._max_num_batched_tokens = max_num_batched_tokens
        self._can_chunk = can_chunk
        self._is_static = is_static

        # Every running request decodes in every step, so each needs a place in the token budget.
        self._max_num_seqs = min(max_num_seqs, max_num_batched_tokens)

        # In the order in which they came and started.
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_preemptions(self) -> int:
        return self._num_preemptions

    def add(self, request: Request) -> None:
        """Queues a request; raises `RequestError` if it could not run even alone."""
        params = request.params
        if params.num_beams > self._max_num_seqs:
            message = f"`num_beams` is {params.num_beams}; at most {self._max_num_seqs} sequences run together"
            raise RequestError(message, kind="invalid_request", param="num_beams")
        num_tokens = request.num_prompt_tokens + params.max_tokens
        num_blocks = self._tables.num_blocks_of_beams(request, num_tokens=num_tokens)
        if num_blocks > self._tables.num_blocks(self._tables.max_tokens):
            beams = f" in each of {params.num_beams} beams" if params.num_beams > 1 else ""
            message = (
                f"the request needs room for {num_tokens} tokens{beams} (prompt {request.num_prompt_tokens}, "
                f"`max_tokens` {params.max_tokens}); the KV cache holds {self._tables.max_tokens}"
            )
            raise RequestError(message, kind="context_length")
        if params.num_beams > 1:
            request.beam_search = BeamSearch(request)
        self._waiting.append(request)

    def schedule(self) -> Schedule:
        """What the next step computes: decodes first; nothing only when there is no request."""
        can_start = not (self._is_static and self._running)
        draft, is_full = self._place_running()
        if self._waiting and can_start and not is_full:
            self._start_waiting(draft)
        budget = self._max_num_batched_tokens - len(draft.decodes)
        chunks = self._chunks(draft.prompts, budget)
        budget -= sum(chunk.num_tokens for chunk in chunks)
        decodes = self._with_proposals(draft, budget)
        return Schedule(decodes + chunks, draft.copies)

    def update(self, chunks: Sequence[Chunk], new_token_ids: Sequence[int]) -> list[Request]:
        """Notes what a step computed.

        Args:
            chunks: what `schedule` gave, in any order.
            new_token_ids: one for each of the chunks that reaches the end of a request without beam search, in the
                same order.

        Returns:
            The requests that have a new token, in the same order; some of them are finished and hold no blocks.
        """
        sampled = [chunk.request for chunk in chunks if chunk.gives_token]
        for request, num_tokens in chunks:
            if request.branch_of is None:
                self._tables.advance(request, num_tokens - len(request.proposed_ids))
        for request, token_id in zip(sampled, new_token_ids, strict=True):
            self._append(request, token_id)
        return sampled

    def accept(self, request: Request, token_id: int) -> None:
        """After `update`: the newest token was proposed, so the step computed it too and gives the one behind it."""
        self._tables.advance(request, 1)
        self._append(request, token_id)

    def adopt(self, branch: Request) -> None:
        """After `update`: the newest token is the branch's and not its request's, which goes on in its blocks."""
        request = branch.branch_of
        assert request is not None, "branches only"
        request.block_table, branch.block_table = branch.block_table, request.block_table

    def end_branches(self, chunks: Sequence[Chunk]) -> None:
        """At the end of a step: gives back what its branches hold."""
        for request, _ in chunks:
            if request.branch_of is not None:
                self._tables.release(request)

    def _append(self, request: Request, token_id: int) -> None:
        request.token_ids.append(token_id)
        if reason := _finish_reason(request):
            self.finish(request, reason)

    def update_beams(self, search: BeamSearch, log_probs: Floats, token_ids: Ints) -> None:
        """After `update`: gives a search the candidates of its beams' next tokens, see `BeamSearch.advance`.

        When the search is done its request is finished and holds no blocks.
        """
        continuations = search.advance(log_probs, token_ids)
        if search.is_done:
            self.finish(search.request, "stop")
            return
        parents = search.beams
        search.beams = [self._tables.fork(each.beam, each.token_id) for each in continuations]
        for parent in parents:
            self._tables.release(parent)
        if not self._tables.can_share:
            # NOTE: slow but right. The beams hold no blocks and are computed again from their first tokens.
            self._running.remove(search.request)
            self._put_back(search.request)

    def finish(self, request: Request, reason: FinishReason | None) -> None:
        """Ends a request wherever it is and frees its blocks; `None` is the reason of an aborted one."""
        if request.state is RequestState.RUNNING:
            self._running.remove(request)
        elif request.state is RequestState.WAITING:
            self._waiting.remove(request)
        self._release(request)
        if self._speculation is not None:
            self._speculation.forget(request)
        request.state = RequestState.FINISHED
        request.finish_reason = reason

    def _place_running(self) -> tuple[_Draft, bool]:
        """The running requests' part of a step, oldest first; and whether blocks ran out on the way."""
        draft = _Draft()
        is_full = False
        position = 0
        # NOTE: requests behind `position` may be preempted meanwhile, those before it never.
        while position < len(self._running):
            request = self._running[position]
            while request.state is RequestState.RUNNING and not self._place(request, draft):
                is_full = True
                self._preempt_newest()
            position += 1
        return draft, is_full

    def _place(self, request: Request, draft: _Draft) -> bool:
        """Gives a running request its part of the step; `False` when blocks are missing for it."""
        if _has_beams(request):
            return self._place_beams(_rows(request), draft)
        if len(request.token_ids) - request.num_computed_tokens > 1:
            draft.prompts.append(request)
            return True
        if self._tables.grow(request):
            draft.decodes.append(Chunk(request, 1))
            return True
        return False

    def _place_beams(self, beams: Sequence[Request], draft: _Draft) -> bool:
        """All beams decode; or, after a preemption, the first that has not caught up yet is computed."""
        for beam in beams:
            if not beam.block_table and not self._tables.start(beam, self._tables.match(beam)):
                return False
            if not beam.is_decoding:
                draft.prompts.append(beam)
                return True
        copies = self._tables.grow_beams(beams)
        if copies is None:
            return False
        draft.copies += copies
        draft.decodes += [Chunk(beam, 1) for beam in beams]
        return True

    def _start_waiting(self, draft: _Draft) -> None:
        """Starts waiting requests in order of arrival, as far as places, blocks and the token budget go.

        A request whose beginning is just being computed keeps its turn, and the place that it will take.
        """
        num_places = self._max_num_seqs - sum(request.params.num_beams for request in self._running)
        if num_places == 0:
            return
        num_reserved = sum(self._growth(request) for request in self._running)
        held_back: list[Request] = []
        while self._waiting and self._has_budget(draft):
            request = self._waiting[0]
            num_places -= request.params.num_beams
            if num_places < 0:
                break
            match = self._tables.match(_rows(request)[0])
            if match.is_expected and not self._is_static:
                held_back.append(self._waiting.popleft())
                continue
            if not self._start(request, match, num_reserved=num_reserved):
                break
            self._place(request, draft)
            num_reserved += self._growth(request)
        self._waiting.extendleft(reversed(held_back))

    def _has_budget(self, draft: _Draft) -> bool:
        """Whether the step could compute more than it has, or so few prompts that one more may come under way."""
        if self._is_static or len(draft.prompts) < MAX_LONG_PROMPTS:
            return True
        num_tokens = len(draft.decodes) + sum(map(_num_to_prefill, draft.prompts))
        return num_tokens < self._max_num_batched_tokens

    def _start(self, request: Request, match: PrefixMatch, *, num_reserved: int) -> bool:
        """Starts the request at the queue's head if its tokens fit beside what is reserved."""
        first = _rows(request)[0]
        num_blocks = self._tables.num_to_take(first, match)
        if _has_beams(request):
            num_blocks = self._tables.num_blocks_of_beams(request, num_tokens=len(first.token_ids))
        if num_blocks + num_reserved > self._tables.num_free or not self._tables.start(first, match):
            return False
        self._running.append(self._waiting.popleft())
        request.state = RequestState.RUNNING
        return True

    def _growth(self, request: Request) -> int:
        """Blocks that a running request may need soon: one to grow, and all of a beam that has none."""
        rows = _rows(request)
        num_unstarted = sum(not row.block_table for row in rows)
        num_own = self._tables.num_own_blocks(request, num_tokens=len(rows[0].token_ids))
        return request.params.num_beams + num_unstarted * num_own

    def _chunks(self, prompts: Sequence[Request], budget: int) -> list[Chunk]:
        """The next chunks of prompts, the oldest first.

        The oldest leaves up to half of the budget to those that have less left to compute than itself, so that short
        prompts do not wait for the end of a long one.
        """
        chunks: list[Chunk] = []
        shorter = [each for each in prompts[1:] if _num_to_prefill(each) < _num_to_prefill(prompts[0])]
        shorter.sort(key=_num_to_prefill)
        limit = budget - min(budget // 2, sum(map(_num_to_prefill, shorter)))
        for request in dict.fromkeys([*prompts[:1], *shorter, *prompts]):
            num_tokens = _num_to_prefill(request)
            if self._can_chunk:
                num_tokens = min(num_tokens, limit)
            elif chunks and num_tokens > limit:
                break
            if num_tokens > 0:
                chunks.append(Chunk(request, num_tokens))
                budget -= num_tokens
            limit = budget
        return chunks

    def _with_proposals(self, draft: _Draft, budget: int) -> list[Chunk]:
        """The decodes, with tokens to verify as far as the budget goes and blocks are free beside everyone's growth."""
        speculation = self._speculation
        if speculation is None or not self._can_chunk or not speculation.may_pay(len(self._running)):
            return draft.decodes
        wishes: dict[Request, int] = {}
        for request, _ in draft.decodes:
            if request.beam_search is not None:
                continue
            num_left = request.params.max_tokens - request.num_completion_tokens - 1
            count = speculation.wish(request, max_tokens=num_left, max_rows=budget, num_running=len(self._running))
            if count > 0:
                wishes[request] = count
                budget -= speculation.num_rows(count)
        if not wishes:
            return draft.decodes
        branches: list[Chunk] = []
        for request, (first, *others) in speculation.propose(wishes).items():
            request.proposed_ids = first[: self._tables.room(request, num_reserved=self._max_num_seqs)]
            has_room = self._tables.extend(request, len(request.token_ids) + len(request.proposed_ids))
            assert has_room, "proposals keep to the room"
            for guess in others:
                if branch := self._tables.branch(request, guess, num_reserved=self._max_num_seqs):
                    branches.append(Chunk(branch[0], 1 + len(guess)))
                    draft.copies += branch[1]
        return [Chunk(each, num_tokens + len(each.proposed_ids)) for each, num_tokens in draft.decodes] + branches

    def _preempt_newest(self) -> None:
        """Sends the newest running request back to the queue's head; it keeps its tokens, not its blocks."""
        request = self._running.pop()
        self._num_preemptions += 1
        self._release(request)
        self._put_back(request)

    def _put_back(self, request: Request) -> None:
        request.state = RequestState.WAITING
        self._waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        for row in _rows(request):
            self._tables.release(row)


def _rows(request: Request) -> Sequence[Request]:
    """What of a request runs in a batch: its beams, or itself."""
    return (request,) if request.beam_search is None else request.beam_search.beams


def _has_beams(request: Request) -> bool:
    """Whether the prompt is behind it and its beams run in its place."""
    return request.beam_search is not None and request.beam_search.beams[0] is not request


def _num_to_prefill(request: Request) -> int:
    """Tokens to compute before the request decodes; a beam's newest token waits until all beams decode."""
    is_beam = request.beam_search is not None and request.beam_search.request is not request
    return request.num_uncomputed_tokens - is_beam


def _finish_reason(request: Request) -> FinishReason | None:
    """Whether the newest token ends the request, as far as tokens tell; stop strings are the engine's part."""
    if request.token_ids[-1] in request.eos_ids:
        return "stop"
    if request.num_completion_tokens >= request.params.max_tokens:
        return "length"
    return None
