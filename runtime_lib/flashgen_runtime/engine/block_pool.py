"""Hands out the blocks of the KV cache by number, counts their users, and remembers what unused ones still hold.

Knows neither tensors nor tokens: what a block holds has a key, made by `engine.prefix_cache`.
"""

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Used plus free blocks are always the total; a block is free when nobody refers to it.

    A free block whose contents have a key can be found and used again until its memory is handed out, which happens to
    blocks without a key first, then to the one that became free longest ago.
    """

    def __init__(self, num_blocks: int) -> None:
        self._references = [0] * num_blocks

        # The last one is handed out first: recently used memory is more likely in a processor's cache.
        self._free = list(range(num_blocks - 1, -1, -1))

        # Free blocks with a key, the first to go first; the values mean nothing.
        self._free_with_key: OrderedDict[int, None] = OrderedDict()
        self._block_of_key: dict[bytes, int] = {}
        self._key_of_block: dict[int, bytes] = {}

    @property
    def num_blocks(self) -> int:
        return len(self._references)

    @property
    def num_free(self) -> int:
        return len(self._free) + len(self._free_with_key)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def num_references(self, block: int) -> int:
        return self._references[block]

    def allocate(self, count: int) -> list[int] | None:
        """Takes `count` blocks, each with one reference; all of them, or `None` when fewer are free."""
        if count > self.num_free:
            return None
        num_evicted = count - len(self._free)
        for _ in range(num_evicted):
            self._evict_oldest()
        first = len(self._free) - count
        blocks = self._free[first:]
        del self._free[first:]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """One more reference to a block that is in use, or free and found by its key."""
        if self._references[block] == 0:
            del self._free_with_key[block]
        self._references[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Gives one reference to each block back; raises `ValueError` for one that is not in use."""
        for block in blocks:
            if self._references[block] == 0:
                raise ValueError(f"block {block} is not in use")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._put_back(block)

    def find(self, key: bytes) -> int | None:
        """The block whose contents have this key, in use or free."""
        return self._block_of_key.get(key)

    def name(self, block: int, key: bytes) -> None:
        """Notes the key of a used block's contents; when another block has it already, that one stays the one found."""
        if key not in self._block_of_key:
            self._block_of_key[key] = block
            self._key_of_block[block] = key

    def _put_back(self, block: int) -> None:
        if block in self._key_of_block:
            self._free_with_key[block] = None
        else:
            self._free.append(block)

    def _evict_oldest(self) -> None:
        """What the block held that became free longest ago is forgotten."""
        block, _ = self._free_with_key.popitem(last=False)
        del self._block_of_key[self._key_of_block.pop(block)]
        self._free.append(block)
