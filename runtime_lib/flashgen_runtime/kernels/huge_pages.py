"""Memory for weights in huge pages, where the system has them: reading it once a step misses no address translation."""

import contextlib
import mmap

import torch

HUGE_PAGE_BYTES = 2 << 20


def empty_bytes(count: int) -> torch.Tensor:
    """[count], uint8, aligned to 64 bytes at least; of small sizes, which share no huge page, as torch gives them."""
    if count < HUGE_PAGE_BYTES:
        return torch.empty(count, dtype=torch.uint8)
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A system without huge pages says no; then these are pages like others.
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
