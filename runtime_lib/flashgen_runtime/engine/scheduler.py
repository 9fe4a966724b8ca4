"""Decides what each step computes, and keeps account of the requests' tokens and blocks. Free of torch.

First come, first served. A step decodes every running request, then fills the token budget with chunks of prompts.
A request starts when its blocks are free beside one for the growth of each running request; should the blocks run out
later, the newest running request gives all of its own back and is computed again when there is room. Its tokens stay,
so nothing is lost. The oldest request always gets on, hence every request ends.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from flashgen_runtime.engine.block_pool import BlockPool
from flashgen_runtime.engine.request import Request, RequestState
from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import FinishReason


class Chunk(NamedTuple):
    """The next `num_tokens` tokens of a request that a step computes."""

    request: Request
    num_tokens: int

    @property
    def reaches_end(self) -> bool:
        """Whether the step gives the request a new token."""
        return self.num_tokens == self.request.num_uncomputed_tokens


class Scheduler:
    """Owns the requests and the block pool; `schedule` and `update` alternate, `finish` may come between steps."""

    def __init__(self, pool: BlockPool, *, block_size: int, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._max_num_batched_tokens = max_num_batched_tokens

        # Every running request decodes in every step, so each needs a place in the token budget.
        self._max_num_seqs = min(max_num_seqs, max_num_batched_tokens)

        # Both in order of arrival; every running request came before every waiting one.
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

    @property
    def max_tokens(self) -> int:
        """Longest prompt plus completion that the blocks can hold."""
        return self._pool.num_blocks * self._block_size

    def add(self, request: Request) -> None:
        """Queues a request; raises `RequestError` if all blocks together could not hold it."""
        num_tokens = request.num_prompt_tokens + request.params.max_tokens
        if num_tokens > self.max_tokens:
            message = (
                f"the request needs room for {num_tokens} tokens (prompt {request.num_prompt_tokens}, `max_tokens` "
                f"{request.params.max_tokens}); the KV cache holds {self.max_tokens}"
            )
            raise RequestError(message, kind="context_length")
        self._waiting.append(request)

    def schedule(self) -> list[Chunk]:
        """What the next step computes: decodes first; empty only when there is no request."""
        decodes, is_full = self._schedule_decodes()
        budget = self._max_num_batched_tokens - len(decodes)
        chunks = self._continue_prefills(budget)
        if not is_full:
            chunks += self._admit(budget - sum(chunk.num_tokens for chunk in chunks))
        return decodes + chunks

    def update(self, chunks: Sequence[Chunk], new_token_ids: Sequence[int]) -> list[Request]:
        """Notes what a step computed.

        Args:
            chunks: what `schedule` gave, in any order.
            new_token_ids: one for each of the chunks that reaches its request's end, in the same order.

        Returns:
            The requests that have a new token, in the same order; some of them are finished and hold no blocks.
        """
        sampled = [chunk.request for chunk in chunks if chunk.reaches_end]
        for request, num_tokens in chunks:
            request.num_computed_tokens += num_tokens
        for request, token_id in zip(sampled, new_token_ids, strict=True):
            request.token_ids.append(token_id)
            if reason := _finish_reason(request):
                self.finish(request, reason)
        return sampled

    def finish(self, request: Request, reason: FinishReason | None) -> None:
        """Ends a request wherever it is and frees its blocks; `None` is the reason of an aborted one."""
        if request.state is RequestState.RUNNING:
            self._running.remove(request)
        elif request.state is RequestState.WAITING:
            self._waiting.remove(request)
        self._free_blocks(request)
        request.state = RequestState.FINISHED
        request.finish_reason = reason

    def _schedule_decodes(self) -> tuple[list[Chunk], bool]:
        """One token of each request that decodes, oldest first; and whether blocks ran out on the way."""
        decodes: list[Chunk] = []
        is_full = False
        position = 0
        # NOTE: requests behind `position` may be preempted meanwhile, those before it never.
        while position < len(self._running):
            request = self._running[position]
            if request.is_decoding:
                while not self._grow(request, 1):
                    is_full = True
                    self._preempt_newest()
                    if request.state is RequestState.WAITING:
                        return decodes, is_full
                decodes.append(Chunk(request, 1))
            position += 1
        return decodes, is_full

    def _continue_prefills(self, budget: int) -> list[Chunk]:
        """The next chunks of prompts that were admitted before; their blocks are allocated already."""
        chunks: list[Chunk] = []
        for request in self._running:
            if not request.is_decoding and budget > 0:
                chunks.append(Chunk(request, min(request.num_uncomputed_tokens, budget)))
                budget -= chunks[-1].num_tokens
        return chunks

    def _admit(self, budget: int) -> list[Chunk]:
        """First chunks of waiting requests, in order of arrival, as far as budget, places and blocks go."""
        chunks: list[Chunk] = []
        while self._waiting and budget > 0 and len(self._running) < self._max_num_seqs:
            request = self._waiting[0]
            if not self._has_room(request):
                break
            self._grow(request, len(request.token_ids))
            self._waiting.popleft()
            self._running.append(request)
            request.state = RequestState.RUNNING
            chunks.append(Chunk(request, min(request.num_uncomputed_tokens, budget)))
            budget -= chunks[-1].num_tokens
        return chunks

    def _has_room(self, request: Request) -> bool:
        """Whether all its tokens fit beside one more block for each running request."""
        num_blocks = self._num_blocks(len(request.token_ids))
        return num_blocks + len(self._running) <= self._pool.num_free

    def _grow(self, request: Request, num_tokens: int) -> bool:
        """Gives a request the blocks for its next `num_tokens` tokens; `False` when too few are free."""
        num_missing = self._num_blocks(request.num_computed_tokens + num_tokens) - len(request.block_table)
        if num_missing <= 0:
            return True
        blocks = self._pool.allocate(num_missing)
        if blocks is None:
            return False
        request.block_table.extend(blocks)
        return True

    def _preempt_newest(self) -> None:
        """Sends the newest running request back to the head of the queue; it keeps its tokens, not its blocks."""
        request = self._running.pop()
        self._num_preemptions += 1
        self._free_blocks(request)
        request.num_computed_tokens = 0
        request.state = RequestState.WAITING
        self._waiting.appendleft(request)

    def _free_blocks(self, request: Request) -> None:
        self._pool.free(request.block_table)
        del request.block_table[:]

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)


def _finish_reason(request: Request) -> FinishReason | None:
    """Whether the newest token ends the request, as far as tokens tell; stop strings are the engine's part."""
    if request.token_ids[-1] in request.eos_ids:
        return "stop"
    if request.num_completion_tokens >= request.params.max_tokens:
        return "length"
    return None
