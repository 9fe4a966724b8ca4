"""Memory for weights in huge pages, where the system has them: reading it once a step misses no address translation."""

import contextlib
import mmap

import torch

HUGE_PAGE_BYTES = 2 << 20


def zero_bytes(count: int) -> torch.Tensor:
    """[count], uint8, zeros, aligned to 64 bytes at least. Large ones take no memory until they are written to."""
    if count < HUGE_PAGE_BYTES:
        # They share no huge page.
        return torch.zeros(count, dtype=torch.uint8)
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A system without huge pages says no; then these are pages like others.
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
