"""Memory for weights: anonymous arenas and mapped files, in huge pages where the system has them.

Pages are asked for in stripes by several threads, in the order in which they will be needed: one request at a time
leaves a disk mostly idle, and faults one by one are slower still. Every request of the system is optional: where it
is not known, pages arrive when they are touched.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

PAGE_BYTES = mmap.PAGESIZE
STRIPE_BYTES = 8 << 20
DEFAULT_THREADS = 4

# From <linux/mman.h>; Python names only some of them.
_MADV_HUGEPAGE = 14
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23

# ctypes, because `mmap.madvise` keeps the interpreter's lock while the system reads from the disk.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Region:
    """A range of this process's memory, given back when the last tensor over it is gone.

    Attributes:
        tensor: [size], uint8: all of it; views of it keep the memory alive.
    """

    def __init__(self, memory: mmap.mmap, size: int, *, populate: int) -> None:
        self.tensor = torch.frombuffer(memory, dtype=torch.uint8)[:size]
        self._memory = memory
        self._size = size
        self._populate = populate
        self._address = self.tensor.data_ptr()
        self._advise(0, size, _MADV_HUGEPAGE)

    @property
    def size(self) -> int:
        return self._size

    def buffer(self, start: int, end: int) -> memoryview:
        """The bytes `start` : `end`, to be read into."""
        return memoryview(self._memory)[start:end]

    def populate(self, start: int, end: int, *, threads: int = DEFAULT_THREADS) -> None:
        """Brings the pages of `start` : `end` into memory; returns when they are there."""
        stripes = list(stripes_of(start, end))
        if len(stripes) <= 1 or threads == 1:
            for first, last in stripes:
                self._advise(first, last, self._populate)
            return
        with ThreadPoolExecutor(min(threads, len(stripes)), thread_name_prefix="populate") as pool:
            list(pool.map(lambda stripe: self._advise(stripe[0], stripe[1], self._populate), stripes))

    def _advise(self, start: int, end: int, advice: int) -> None:
        """Tells the system; it may refuse, and nothing depends on its consent."""
        first = start // PAGE_BYTES * PAGE_BYTES
        if end > first:
            _libc.madvise(self._address + first, end - first, advice)


def arena(size: int) -> Region:
    """Private memory of `size` bytes, zeros, page-aligned; raises `MemoryError`."""
    try:
        # Huge pages need room to be aligned; the system aligns large mappings by itself.
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size} bytes for weights") from error
    return Region(memory, size, populate=_MADV_POPULATE_WRITE)


def map_file(path: Path, size: int) -> Region:
    """The first `size` bytes of a file, shared with every process that maps it; writes stay private.

    Only for files that nobody changes: a file that is truncated later ends the process that touches it.
    """
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), max(size, 1), access=mmap.ACCESS_COPY)
    return Region(memory, size, populate=_MADV_POPULATE_READ)


def stripes_of(start: int, end: int, stripe_bytes: int = STRIPE_BYTES) -> Iterator[tuple[int, int]]:
    """Cuts a range at multiples of `stripe_bytes`."""
    while start < end:
        stop = min((start // stripe_bytes + 1) * stripe_bytes, end)
        yield start, stop
        start = stop


# cachestat(2), Linux 6.5 and later; one number for all architectures.
_SYS_CACHESTAT = 451


class _CacheRange(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recent"))


def cached_share(descriptor: int) -> float:
    """The share of an open file that lies in the page cache, 0 to 1; 0 where the system does not tell."""
    size = os.fstat(descriptor).st_size
    found = _CacheStat()
    arguments = (ctypes.c_uint(descriptor), ctypes.byref(_CacheRange(0, size)), ctypes.byref(found), ctypes.c_uint(0))
    if not size or _libc.syscall(ctypes.c_long(_SYS_CACHESTAT), *arguments) != 0:
        return 0.0
    return min(1.0, int(found.cache) * PAGE_BYTES / size)
