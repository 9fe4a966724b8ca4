"""The prefix cache: equal beginnings share blocks, different ones never do."""

import random

from hypothesis import given
from hypothesis import strategies as st

from flashgen_runtime.engine.block_pool import BlockPool
from flashgen_runtime.engine.block_tables import BlockTables
from flashgen_runtime.engine.prefix_cache import extend_keys
from flashgen_runtime.engine.request import Request
from tests.scheduler_trace import request_of

BLOCK_SIZE = 4
TEXT = list(range(40))


def keys_of(token_ids: list[int], *, salt: bytes = b"") -> list[bytes]:
    request = request_of("keys", token_ids, max_tokens=1)
    request.cache_salt = salt
    extend_keys(request, block_size=BLOCK_SIZE)
    return request.block_keys


def started(tables: BlockTables, token_ids: list[int]) -> Request:
    """A request with all its blocks, none of them computed but those it shares."""
    request = request_of("started", token_ids, max_tokens=1)
    assert tables.start(request, tables.match(request))
    return request


def computed(tables: BlockTables, token_ids: list[int]) -> Request:
    request = started(tables, token_ids)
    tables.advance(request, request.num_uncomputed_tokens)
    return request


@given(st.lists(st.integers(0, 2), max_size=16), st.lists(st.integers(0, 2), max_size=16))
def test_keys_are_equal_just_as_far_as_the_tokens(first: list[int], second: list[int]) -> None:
    """A block's key stands for its tokens and all before them."""
    for index, (one, other) in enumerate(zip(keys_of(first), keys_of(second), strict=False), start=1):
        are_equal = first[: index * BLOCK_SIZE] == second[: index * BLOCK_SIZE]
        assert (one == other) == are_equal


@given(st.lists(st.integers(0, 100_000), max_size=20), st.integers(0, 20))
def test_keys_of_a_request_that_grows_are_those_of_the_whole(token_ids: list[int], length: int) -> None:
    """It does not matter in how many parts a request came."""
    request = request_of("grows", token_ids[:length], max_tokens=1)
    extend_keys(request, block_size=BLOCK_SIZE)
    request.token_ids += token_ids[length:]

    extend_keys(request, block_size=BLOCK_SIZE)

    assert request.block_keys == keys_of(token_ids)


def test_other_salt_shares_nothing() -> None:
    """Equal tokens under another salt have other keys."""
    assert not set(keys_of(TEXT)) & set(keys_of(TEXT, salt=b"other"))


def test_running_and_ended_requests_are_shared_with() -> None:
    """Full blocks are found while their request runs and after it has ended; the last token is left to compute."""
    pool = BlockPool(16)
    tables = BlockTables(pool, block_size=BLOCK_SIZE)
    first = computed(tables, TEXT[:8])

    second = started(tables, TEXT[:8])
    third = started(tables, TEXT[:10])

    assert second.num_computed_tokens == 4
    assert third.num_computed_tokens == 8
    assert second.block_table[0] == third.block_table[0] == first.block_table[0]
    for request in (first, second, third):
        tables.release(request)
    assert pool.num_used == 0
    assert started(tables, TEXT[:10]).num_computed_tokens == 8


def test_blocks_that_are_not_computed_are_not_found() -> None:
    """A block is known once all its tokens are computed, not when it is allocated."""
    tables = BlockTables(BlockPool(16), block_size=BLOCK_SIZE)
    request = started(tables, TEXT[:12])
    tables.advance(request, 7)

    assert started(tables, TEXT[:12]).num_computed_tokens == 4


def test_the_end_of_a_text_is_forgotten_before_its_beginning() -> None:
    """When memory is needed, the last block of the request that ended first goes first."""
    pool = BlockPool(6)
    tables = BlockTables(pool, block_size=BLOCK_SIZE)
    old, new = computed(tables, TEXT[:12]), computed(tables, TEXT[20:32])
    tables.release(old)
    tables.release(new)

    assert pool.allocate(2) is not None

    assert len(tables.match(request_of("old", [*TEXT[:12], 99], max_tokens=1)).blocks) == 1
    assert len(tables.match(request_of("new", [*TEXT[20:32], 99], max_tokens=1)).blocks) == 3


def test_completions_are_shared_as_prompts_are() -> None:
    """A conversation's next turn finds the blocks of the answer before it."""
    tables = BlockTables(BlockPool(16), block_size=BLOCK_SIZE)
    request = computed(tables, TEXT[:7])
    request.token_ids += TEXT[7:9]
    tables.advance(request, 2)

    assert started(tables, TEXT[:12]).num_computed_tokens == 8


def test_hits_and_queries_are_counted_once_per_request() -> None:
    """A request that comes back after a preemption counts neither again."""
    tables = BlockTables(BlockPool(16), block_size=BLOCK_SIZE)
    computed(tables, TEXT[:8])
    request = computed(tables, TEXT[:10])
    tables.release(request)

    assert tables.start(request, tables.match(request))

    assert request.num_cached_tokens == 8
    assert tables.num_queried_tokens == 18
    assert tables.num_hit_tokens == 8


def test_nothing_is_shared_where_models_cannot() -> None:
    """Without sharing, equal prompts have blocks of their own."""
    tables = BlockTables(BlockPool(16), block_size=BLOCK_SIZE, can_share=False)
    first, second = computed(tables, TEXT[:8]), computed(tables, TEXT[:8])

    assert not set(first.block_table) & set(second.block_table)
    assert second.num_cached_tokens == 0


def test_long_prompts_have_as_many_keys_as_full_blocks() -> None:
    """A prompt of any length is keyed block by block, without a rest."""
    chance = random.Random(0)
    keys = keys_of([chance.randrange(150_000) for _ in range(4097)])

    assert len(set(keys)) == len(keys) == 1024
