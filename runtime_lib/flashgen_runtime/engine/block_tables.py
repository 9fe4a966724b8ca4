"""Gives requests their blocks of the KV cache and takes them back; leaves to the scheduler when. Free of torch."""

from array import array
from collections.abc import Callable, Sequence

from flashgen_runtime.engine.block_pool import BlockPool
from flashgen_runtime.engine.prefix_cache import PrefixCache, PrefixMatch, extend_keys
from flashgen_runtime.engine.request import Request, RequestState
from flashgen_runtime.engine.structured import TokenMask

NO_MATCH = PrefixMatch([], num_free=0, is_expected=False)


class BlockTables:
    """The only one who changes a request's block table.

    Args:
        pool: where the blocks come from.
        block_size: tokens of a block.
        can_share: whether requests may share blocks.
        forget: told of each request that has given its blocks back.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        can_share: bool = True,
        forget: Callable[[Request], None] = lambda _: None,
    ) -> None:
        self._pool = pool
        self._block_size = block_size
        self._prefix_cache = PrefixCache(pool, block_size=block_size) if can_share else None
        self._forget = forget

        # Tokens of prompts that were looked for in the prefix cache, and those found.
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    @property
    def can_share(self) -> bool:
        return self._prefix_cache is not None

    @property
    def num_free(self) -> int:
        return self._pool.num_free

    @property
    def max_tokens(self) -> int:
        """Tokens that all blocks together can hold."""
        return self._pool.num_blocks * self._block_size

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that so many tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self._block_size)

    def num_own_blocks(self, request: Request, *, num_tokens: int) -> int:
        """Blocks that each of a request's beams has to itself, at most, with `num_tokens` tokens."""
        return self.num_blocks(num_tokens) - self._num_common_blocks(request)

    def num_blocks_of_beams(self, request: Request, *, num_tokens: int) -> int:
        """Blocks that all of a request's beams take together, at most, with `num_tokens` tokens each."""
        num_own = self.num_own_blocks(request, num_tokens=num_tokens)
        return self._num_common_blocks(request) + request.params.num_beams * num_own

    def key_together(self, requests: Sequence[Request]) -> None:
        """Spares choices of one request, which have equal prompts, from hashing it each for itself."""
        if self._prefix_cache is not None and len(requests) > 1:
            extend_keys(requests[0], block_size=self._block_size)
            for request in requests[1:]:
                request.block_keys = requests[0].block_keys.copy()

    def match(self, request: Request) -> PrefixMatch:
        """The blocks that a request without blocks can share."""
        return NO_MATCH if self._prefix_cache is None else self._prefix_cache.match(request)

    def num_to_take(self, request: Request, match: PrefixMatch) -> int:
        """By how many blocks fewer are free once the request has blocks for all its tokens."""
        return self.num_blocks(len(request.token_ids)) - len(match.blocks) + match.num_free

    def start(self, request: Request, match: PrefixMatch) -> bool:
        """Gives a request blocks for all its tokens, shared ones first; `False` when too few are free."""
        if self.num_to_take(request, match) > self._pool.num_free:
            return False
        for block in match.blocks:
            self._pool.share(block)
        own = self._pool.allocate(self.num_blocks(len(request.token_ids)) - len(match.blocks))
        assert own is not None, "as many as were counted above"
        request.block_table.extend(match.blocks + own)
        request.num_computed_tokens = len(match.blocks) * self._block_size
        request.num_named_blocks = len(match.blocks)
        if self._prefix_cache is not None:
            self._prefix_cache.expect(request)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
            self.num_queried_tokens += request.num_prompt_tokens
            self.num_hit_tokens += request.num_computed_tokens
        return True

    def grow(self, request: Request) -> bool:
        """Gives a decoding request room for its newest token; `False` when no block is free."""
        if request.num_computed_tokens < len(request.block_table) * self._block_size:
            return True
        blocks = self._pool.allocate(1)
        if blocks is None:
            return False
        request.block_table.extend(blocks)
        return True

    def room(self, request: Request, *, num_reserved: int) -> int:
        """Tokens behind its newest that a decoding request could have verified, so many blocks staying free."""
        num_blocks = len(request.block_table) + max(0, self._pool.num_free - num_reserved)
        return num_blocks * self._block_size - request.num_computed_tokens - 1

    def extend(self, request: Request, num_tokens: int) -> bool:
        """Gives a request blocks for so many tokens; `False` when too few are free."""
        blocks = self._pool.allocate(max(0, self.num_blocks(num_tokens) - len(request.block_table)))
        if blocks is None:
            return False
        request.block_table.extend(blocks)
        return True

    def branch(
        self, request: Request, proposed_ids: list[int], *, num_reserved: int
    ) -> tuple[Request, list[tuple[int, int]]] | None:
        """A decoding request once more, with another guess, for one step.

        It shares the blocks that are full and has its own behind them.

        Returns:
            It, and the blocks to copy, source and target; `None` where fewer than `num_reserved` blocks would be left
            or blocks cannot be shared.
        """
        num_computed = request.num_computed_tokens
        num_shared = num_computed // self._block_size
        num_own = self.num_blocks(num_computed + 1 + len(proposed_ids)) - num_shared
        if not self.can_share or num_own + num_reserved > self._pool.num_free:
            return None
        own = self._pool.allocate(num_own)
        assert own is not None, "as many as were counted above"
        shared = request.block_table[:num_shared]
        for block in shared:
            self._pool.share(block)
        branch = Request(
            request_id=request.request_id,
            params=request.params,
            token_ids=request.token_ids.copy(),
            num_prompt_tokens=request.num_prompt_tokens,
            seed=request.seed,
            eos_ids=request.eos_ids,
            proposed_ids=proposed_ids,
            branch_of=request,
            num_computed_tokens=num_computed,
            block_table=shared + array("q", own),
        )
        return branch, [(request.block_table[num_shared], own[0])] if num_computed % self._block_size else []

    def grow_beams(self, beams: Sequence[Request]) -> list[tuple[int, int]] | None:
        """Gives each of a search's decoding beams room of its own for its newest token.

        Returns:
            Blocks to copy, source and target, or `None` when too few are free; then nothing has changed. Beams share
            the block that they continue when they come from the same beam; all but one of them get a copy.
        """
        has_room = {beam: beam.num_computed_tokens < len(beam.block_table) * self._block_size for beam in beams}
        owners = {beam.block_table[-1]: beam for beam in beams if has_room[beam]}
        in_need = [beam for beam in beams if not has_room[beam] or owners[beam.block_table[-1]] is not beam]
        blocks = self._pool.allocate(len(in_need))
        if blocks is None:
            return None
        copies = []
        for beam, block in zip(in_need, blocks, strict=True):
            if has_room[beam]:
                shared = beam.block_table.pop()
                self._pool.free([shared])
                copies.append((shared, block))
            beam.block_table.append(block)
        return copies

    def fork(self, beam: Request, token_id: int) -> Request:
        """A beam that continues another; it shares all blocks, or has none when blocks cannot be shared."""
        child = Request(
            request_id=beam.request_id,
            params=beam.params,
            token_ids=[*beam.token_ids, token_id],
            num_prompt_tokens=beam.num_prompt_tokens,
            seed=beam.seed,
            eos_ids=beam.eos_ids,
            token_mask=_advanced(beam.token_mask, token_id),
            cache_salt=beam.cache_salt,
            state=RequestState.RUNNING,
            num_cached_tokens=beam.num_cached_tokens,
            beam_search=beam.beam_search,
        )
        if self.can_share:
            for block in beam.block_table:
                self._pool.share(block)
            child.block_table = array("q", beam.block_table)
            child.block_keys = beam.block_keys.copy()
            child.num_computed_tokens = beam.num_computed_tokens
            child.num_named_blocks = beam.num_named_blocks
        return child

    def advance(self, request: Request, num_tokens: int) -> None:
        """Notes that a step computed the request's next `num_tokens` tokens."""
        request.num_computed_tokens += num_tokens
        num_full = request.num_computed_tokens // self._block_size
        if self._prefix_cache is not None and num_full > request.num_named_blocks:
            self._prefix_cache.name_computed(request)

    def release(self, request: Request) -> None:
        """Takes all blocks of a request back; the last are the first to be handed out again."""
        self._pool.free(reversed(request.block_table))
        del request.block_table[:]
        request.num_computed_tokens = 0
        if self._prefix_cache is not None:
            self._prefix_cache.forget(request)
        self._forget(request)

    def _num_common_blocks(self, request: Request) -> int:
        """Beams share at least the full blocks of their prompt."""
        return request.num_prompt_tokens // self._block_size if self.can_share else 0


def _advanced(mask: TokenMask | None, token_id: int) -> TokenMask | None:
    """The mask behind one more token."""
    if mask is None:
        return None
    copy = mask.copy()
    copy.accept(token_id)
    return copy
