"""Memory that was freed and that the C library keeps for later: gives it back to the system."""

import ctypes

# From glibc's <malloc.h>.
_M_ARENA_MAX = -8


def use_one_arena() -> None:
    """Has all threads that begin from now on allocate from one heap; other C libraries than glibc stay as they are.

    Of a heap that belongs to a thread, trimming leaves the end, whatever its size: up to 64 MiB that no budget knows.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)


def give_back_freed_memory() -> None:
    """Takes some milliseconds, without the interpreter's lock; another C library than glibc keeps what it has."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
