"""Hands out the blocks of the KV cache by number. Knows neither tensors nor requests."""

from collections.abc import Iterable


class BlockPool:
    """A free list. Used plus free blocks are always the total, and no block is used twice."""

    def __init__(self, num_blocks: int) -> None:
        # The last one is handed out first: recently used memory is more likely in a processor's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_used = bytearray(num_blocks)

    @property
    def num_blocks(self) -> int:
        return len(self._is_used)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def allocate(self, count: int) -> list[int] | None:
        """Takes `count` blocks; all of them, or `None` when fewer are free."""
        if count > len(self._free):
            return None
        first = len(self._free) - count
        blocks = self._free[first:]
        del self._free[first:]
        for block in blocks:
            self._is_used[block] = True
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Takes blocks back; raises `ValueError` for one that is not in use."""
        for block in blocks:
            if not self._is_used[block]:
                raise ValueError(f"block {block} is not in use")
            self._is_used[block] = False
            self._free.append(block)
