"""Reads safetensors files: mapped where nobody can change them, else into an arena of our own.

A mapped file costs no private memory and is shared by all processes, but a process dies when a file that it maps is
truncated, and computes with other weights when it is overwritten. So only files of our own store are mapped; all others
are read, past the page cache where they do not lie in it already: a cold file read through the cache is copied twice.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.memory import (
    DEFAULT_THREADS,
    PAGE_BYTES,
    Region,
    arena,
    cached_share,
    map_file,
    stripes_of,
)
from flashgen_runtime.loader.safetensors_header import SafetensorsHeader, TensorEntry, read_header

# safetensors' names; those without a torch dtype cannot be loaded as tensors.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}

# From this share on, the page cache is faster than the disk.
MOSTLY_CACHED = 0.9


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file whose bytes lie, or will lie, in memory."""

    header: SafetensorsHeader
    region: Region

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor over the region's memory; a copy where it does not lie on a multiple of its item's size."""
        entry = self.header.tensors[name]
        dtype = _torch_dtype(self.header.path, name, entry)
        start = self.header.data_start
        flat = self.region.tensor[start + entry.start : start + entry.end]
        if flat.data_ptr() % max(dtype.itemsize, 1):
            flat = flat.clone()
        return flat.view(dtype).view(entry.shape) if flat.numel() else torch.empty(entry.shape, dtype=dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, in the order in which they lie."""
        return {name: self.tensor(name) for name in in_file_order(self.header)}


def in_file_order(header: SafetensorsHeader) -> list[str]:
    """The names of a file's tensors by their place."""
    return sorted(header.tensors, key=lambda name: (header.tensors[name].start, header.tensors[name].end))


def read_into_arena(path: Path, *, threads: int = DEFAULT_THREADS) -> OpenFile:
    """Reads a file into private memory; raises `WeightsError` if it is broken, unreadable or changes meanwhile."""
    with _reading(path) as header:
        size = path.stat().st_size
        region = arena(_rounded_up(size))
        _read_all(path, region, size, threads=threads)
    return OpenFile(header, region)


def map_store_file(path: Path, *, populate: bool = True, threads: int = DEFAULT_THREADS) -> OpenFile:
    """Maps a file that never changes; raises `WeightsError` as above. Without `populate` pages come when touched."""
    with _reading(path) as header:
        size = path.stat().st_size
        region = map_file(path, size)
        if populate:
            region.populate(0, size, threads=threads)
    return OpenFile(header, region)


@contextmanager
def _reading(path: Path) -> Iterator[SafetensorsHeader]:
    """Gives the checked header; raises `WeightsError` for errors of the system and for a file that changes."""
    try:
        before = _identity(path)
        yield read_header(path)
        after = _identity(path)
    except OSError as error:
        raise WeightsError(path, f"cannot be read: {error.strerror or error}") from error
    if before != after:
        raise WeightsError(path, "was changed while it was read")


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read_all(path: Path, region: Region, size: int, *, threads: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if cached_share(descriptor) < MOSTLY_CACHED:
            direct = _open_direct(path)
            if direct is not None:
                os.close(descriptor)
                descriptor = direct
        stripes = list(stripes_of(0, size))

        def read_stripe(stripe: tuple[int, int]) -> None:
            region.populate(*stripe, threads=1)
            _read_stripe(path, descriptor, region, *stripe, size=size)

        _in_threads(read_stripe, stripes, threads=threads)
    finally:
        os.close(descriptor)


def _open_direct(path: Path) -> int | None:
    """The file, opened past the page cache; `None` where its file system cannot."""
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    return None


def _read_stripe(path: Path, descriptor: int, region: Region, start: int, end: int, *, size: int) -> None:
    """Reads until all is there: a read may return less. Direct reads begin and end at multiples of the page size."""
    while start < end:
        try:
            count = os.preadv(descriptor, [region.buffer(start, _rounded_up(end))], start)
        except OSError as error:
            # A file system may take the flag and refuse the read.
            if error.errno != errno.EINVAL or not _is_direct(descriptor):
                raise
            _read_buffered(path, region, start, end, size=size)
            return
        if count == 0:
            raise WeightsError(path, f"ends at byte {start} of {size}: it was truncated while it was read")
        if start + count >= end:
            return
        # A short direct read may stop anywhere, but the next one must begin on a page.
        reached = (start + count) // PAGE_BYTES * PAGE_BYTES if _is_direct(descriptor) else start + count
        if reached == start:
            _read_buffered(path, region, start, end, size=size)
            return
        start = reached


def _read_buffered(path: Path, region: Region, start: int, end: int, *, size: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _read_stripe(path, descriptor, region, start, end, size=size)
    finally:
        os.close(descriptor)


def _is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def _in_threads(task: Callable[[tuple[int, int]], None], stripes: Sequence[tuple[int, int]], *, threads: int) -> None:
    """Runs `task` over all stripes, first ones first; raises what the first failing one raises."""
    if threads == 1 or len(stripes) <= 1:
        for stripe in stripes:
            task(stripe)
        return
    with ThreadPoolExecutor(min(threads, len(stripes)), thread_name_prefix="read") as pool:
        list(pool.map(task, stripes))


def _rounded_up(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


def _torch_dtype(path: Path, name: str, entry: TensorEntry) -> torch.dtype:
    try:
        return DTYPES[entry.dtype]
    except KeyError as error:
        raise WeightsError(path, f"tensor `{name}` has the dtype {entry.dtype}, which torch does not have") from error
