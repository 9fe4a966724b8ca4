"""Reads ranges of one file into memory, past the page cache where the file does not lie in it.

A cold file that is read through the cache is copied twice, and drives out what others use.
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.memory import PAGE_BYTES, Region, cached_share, rounded_up

# From this share on, the page cache is faster than the disk.
MOSTLY_CACHED = 0.9


class DiskFile:
    """A file that several threads read; opened when it is made.

    Raises `OSError`.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if cached_share(self._descriptor) < MOSTLY_CACHED:
            direct = _open_direct(path)
            if direct is not None:
                os.close(self._descriptor)
                self._descriptor = direct

    def read(self, region: Region, start: int, end: int, *, origin: int = 0) -> None:
        """Reads `start` : `end` into a region, which has room up to the next page.

        Args:
            region: where to.
            start: the first byte, of the file.
            end: the one after the last.
            origin: the file's offset that lies at the region's beginning, a multiple of the page size.

        Raises:
            OSError: the disk or the file system fails.
            WeightsError: the file ends before `end`.
        """
        self._read(self._descriptor, region, start, end, origin)

    def close(self) -> None:
        os.close(self._descriptor)

    def _read(self, descriptor: int, region: Region, start: int, end: int, origin: int) -> None:
        """A read may return less. Direct reads begin and end at multiples of the page size."""
        start = start // PAGE_BYTES * PAGE_BYTES
        while start < end:
            try:
                count = os.preadv(descriptor, [region.buffer(start - origin, rounded_up(end) - origin)], start)
            except OSError as error:
                # A file system may take the flag and refuse the read.
                if error.errno != errno.EINVAL or not _is_direct(descriptor):
                    raise
                self._read_buffered(region, start, end, origin)
                return
            if count == 0:
                problem = f"ends at byte {start} of {self._size}: it was truncated while it was read"
                raise WeightsError(self._path, problem)
            if start + count >= end:
                return
            # A short direct read may stop anywhere, but the next one must begin on a page.
            reached = (start + count) // PAGE_BYTES * PAGE_BYTES if _is_direct(descriptor) else start + count
            if reached == start:
                self._read_buffered(region, start, end, origin)
                return
            start = reached

    def _read_buffered(self, region: Region, start: int, end: int, origin: int) -> None:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._read(descriptor, region, start, end, origin)
        finally:
            os.close(descriptor)


def _open_direct(path: Path) -> int | None:
    """The file, opened past the page cache; `None` where its file system cannot."""
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    return None


def _is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
