"""The block pool: nothing is lost, nothing is handed out twice."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

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


def test_shared_block_is_free_when_its_last_user_gives_it_back() -> None:
    """Every user gives its own reference back, and one too many is refused."""
    pool = BlockPool(2)
    blocks = pool.allocate(1) or []
    pool.share(blocks[0])

    pool.free(blocks)
    assert pool.num_used == 1
    pool.free(blocks)

    assert pool.num_used == 0
    with pytest.raises(ValueError, match="not in use"):
        pool.free(blocks)


def test_free_block_is_found_until_its_memory_is_needed() -> None:
    """Blocks without a key are handed out first, then the one that became free longest ago."""
    pool = BlockPool(3)
    old, new, nameless = pool.allocate(3) or []
    pool.name(old, b"old")
    pool.name(new, b"new")
    pool.free([old, nameless, new])

    assert pool.num_free == 3
    assert pool.allocate(1) == [nameless]
    assert pool.find(b"old") == old
    assert pool.allocate(1) == [old]
    assert pool.find(b"old") is None
    assert pool.find(b"new") == new


def test_used_block_is_never_handed_out() -> None:
    """A free block that was found and is used again has to be given back first."""
    pool = BlockPool(1)
    block = (pool.allocate(1) or [])[0]
    pool.name(block, b"key")
    pool.free([block])

    pool.share(block)

    assert pool.num_free == 0
    assert pool.allocate(1) is None


def test_first_block_with_a_key_stays_the_one_found() -> None:
    """Two requests that computed the same at once do not move what others may be about to share."""
    pool = BlockPool(2)
    first, second = pool.allocate(2) or []
    pool.name(first, b"key")
    pool.name(second, b"key")

    pool.free([second])

    assert pool.find(b"key") == first
    assert pool.allocate(1) == [second]


class Operations(RuleBasedStateMachine):
    """Any operations in any order, beside a model of the pool that counts references."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.references: Counter[int] = Counter()
        self.keys: dict[bytes, int] = {}

    @rule(count=st.integers(0, 4))
    def allocate(self, count: int) -> None:
        num_free = self.pool.num_free
        blocks = self.pool.allocate(count)
        assert (blocks is None) == (count > num_free)
        for block in blocks or []:
            assert self.references[block] == 0
            self.references[block] = 1
            self.keys = {key: named for key, named in self.keys.items() if named != block}

    @rule(place=st.integers(0, 5))
    def free(self, place: int) -> None:
        if self.references[place]:
            self.pool.free([place])
            self.references[place] -= 1

    @rule(place=st.integers(0, 5), key=st.sampled_from([b"a", b"b", b"c"]))
    def name(self, place: int, key: bytes) -> None:
        if self.references[place] and place not in self.keys.values():
            self.pool.name(place, key)
            self.keys.setdefault(key, place)

    @rule(key=st.sampled_from([b"a", b"b", b"c"]))
    def share(self, key: bytes) -> None:
        block = self.pool.find(key)
        if block is not None:
            self.pool.share(block)
            self.references[block] += 1

    @invariant()
    def each_block_is_in_one_place(self) -> None:
        assert all(self.pool.num_references(block) == self.references[block] for block in range(6))
        assert self.pool.num_used == sum(count > 0 for count in self.references.values())
        assert self.pool.num_used + self.pool.num_free == self.pool.num_blocks == 6
        assert all(self.pool.find(key) == block for key, block in self.keys.items())


Operations.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOperations = Operations.TestCase
