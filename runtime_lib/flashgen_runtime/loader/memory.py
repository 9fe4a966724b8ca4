"""Memory for weights: anonymous arenas and mapped files, in huge pages where the system has them.

Pages are asked for in stripes by several threads, in the order in which they will be needed: one request at a time
leaves a disk mostly idle, and faults one by one are slower still. Every request of the system is optional: where it
is not known, pages arrive when they are touched.
"""

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Iterator

import torch

PAGE_BYTES = mmap.PAGESIZE
STRIPE_BYTES = 8 << 20
DEFAULT_THREADS = 4

# From <linux/mman.h>; Python names only some of them.
_MADV_DONTNEED = 4
_MADV_HUGEPAGE = 14
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23

# ctypes, because `mmap.madvise` keeps the interpreter's lock while the system reads from the disk.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


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
        _advise(self._address, size, _MADV_HUGEPAGE)

    @property
    def size(self) -> int:
        return self._size

    @property
    def address(self) -> int:
        """Of the first byte; a multiple of the page size."""
        return self._address

    def buffer(self, start: int, end: int) -> memoryview:
        """The bytes `start` : `end`, to be read into."""
        return memoryview(self._memory)[start:end]

    def lend(self, start: int, end: int) -> torch.Tensor:
        """[end - start], uint8: a range whose whole pages are given back with the last tensor over it.

        Nothing else of the region may be used where a lent tensor was: for arenas there are zeros afterwards.
        """
        if start == end:
            return torch.empty(0, dtype=torch.uint8)
        owner = (ctypes.c_uint8 * (end - start)).from_address(self._address + start)
        pages = rounded_up(start), end // PAGE_BYTES * PAGE_BYTES
        given_back = weakref.finalize(owner, _give_back, self._memory, self._address, *pages)
        # The system takes all of a process's memory at its end.
        given_back.atexit = False
        return torch.frombuffer(owner, dtype=torch.uint8)

    def populate(self, start: int, end: int) -> bool:
        """Brings the pages of `start` : `end` into memory; whether the system knows how to.

        Raises `OSError` where touching the pages would end the process: the disk fails, or the file is shorter now.
        """
        first = start // PAGE_BYTES * PAGE_BYTES
        while end > first:
            error = _advise(self._address + first, end - first, self._populate)
            if error not in (errno.EAGAIN, errno.EINTR):
                break
        else:
            return True
        if error not in (0, errno.EINVAL, errno.ENOSYS):
            raise OSError(error, os.strerror(error))
        return error == 0


def arena(size: int) -> Region:
    """Private memory of `size` bytes, zeros, page-aligned; reserved, and not touched. Raises `MemoryError`."""
    try:
        # Huge pages need room to be aligned; the system aligns large mappings by itself.
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size} bytes for weights") from error
    return Region(memory, size, populate=_MADV_POPULATE_WRITE)


def map_file(descriptor: int, size: int) -> Region:
    """The first `size` bytes of an open file, shared with every process that maps it; writes stay private.

    Only for files that nobody changes: a file that is truncated later ends the process that touches it.
    """
    memory = mmap.mmap(descriptor, max(size, 1), access=mmap.ACCESS_COPY)
    return Region(memory, size, populate=_MADV_POPULATE_READ)


def stripes_of(start: int, end: int, stripe_bytes: int = STRIPE_BYTES) -> Iterator[tuple[int, int]]:
    """Cuts a range at multiples of `stripe_bytes`."""
    while start < end:
        stop = min((start // stripe_bytes + 1) * stripe_bytes, end)
        yield start, stop
        start = stop


def rounded_up(size: int) -> int:
    """The next multiple of the page size."""
    return -(-size // PAGE_BYTES) * PAGE_BYTES


def _give_back(memory: mmap.mmap, address: int, start: int, end: int) -> None:
    # The mapping lives as long as something may be given back.
    del memory
    _advise(address + start, max(0, end - start), _MADV_DONTNEED)


def _advise(address: int, size: int, advice: int) -> int:
    """The error's number, 0 if there is none."""
    return ctypes.get_errno() if size and _libc.madvise(address, size, advice) else 0


# cachestat(2), Linux 6.5 and later; one number for all architectures.
_SYS_CACHESTAT = 451


class _CacheRange(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recent"))


def cached_share(descriptor: int) -> float:
    """The share of an open file that lies in the page cache, 0 to 1; 0 where the system does not tell."""
    size = os.fstat(descriptor).st_size
    if not size:
        return 0.0
    pages = _cached_pages(descriptor, size)
    if pages is None:
        pages = _core_pages(descriptor, size)
    return min(1.0, pages * PAGE_BYTES / size)


def _cached_pages(descriptor: int, size: int) -> int | None:
    """What cachestat says; `None` where the system does not know it."""
    found = _CacheStat()
    arguments = (ctypes.c_uint(descriptor), ctypes.byref(_CacheRange(0, size)), ctypes.byref(found), ctypes.c_uint(0))
    if _libc.syscall(ctypes.c_long(_SYS_CACHESTAT), *arguments) != 0:
        return None
    return int(found.cache)


def _core_pages(descriptor: int, size: int) -> int:
    """What mincore says of a mapping that is not touched; 0 where it says nothing."""
    try:
        memory = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    except OSError:
        return 0
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    is_there = ctypes.create_string_buffer(rounded_up(size) // PAGE_BYTES)
    if _libc.mincore(tensor.data_ptr(), size, is_there) != 0:
        return 0
    return sum(byte & 1 for byte in is_there.raw)
