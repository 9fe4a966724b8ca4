"""Memory that was freed and that the C library keeps for later: gives it back to the system."""

import ctypes


def give_back_freed_memory() -> None:
    """Takes some milliseconds, without the interpreter's lock; another C library than glibc keeps what it has."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
