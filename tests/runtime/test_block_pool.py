"""The block pool: nothing is lost, nothing is handed out twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashgen_runtime.engine.block_pool import BlockPool


def test_all_or_nothing() -> None:
    """A request for more blocks than are free takes none."""
    pool = BlockPool(4)
    pool.allocate(3)

    assert pool.allocate(2) is None
    assert pool.num_free == 1


def test_freeing_twice_is_refused() -> None:
    """A block that is not in use cannot be given back, or two requests would share it later."""
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.free(blocks)

    with pytest.raises(ValueError, match="not in use"):
        pool.free(blocks)


@given(st.lists(st.integers(min_value=-3, max_value=5), max_size=60))
def test_used_plus_free_is_the_total(operations: list[int]) -> None:
    """After any allocations (positive) and frees (negative), each block is in one place."""
    pool = BlockPool(8)
    held: list[list[int]] = []

    for operation in operations:
        if operation >= 0:
            blocks = pool.allocate(operation)
            held += [blocks] if blocks is not None else []
        elif held:
            pool.free(held.pop(operation % len(held)))

        in_use = [block for blocks in held for block in blocks]
        assert len(in_use) == len(set(in_use)) == pool.num_used
        assert pool.num_used + pool.num_free == pool.num_blocks == 8
