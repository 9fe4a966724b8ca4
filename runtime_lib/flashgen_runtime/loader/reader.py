"""Opens safetensors files: mapped where nobody can change them, else with an arena of our own to read them into.

A mapped file costs no private memory and is shared by all processes, but a process dies when a file that it maps is
truncated, and computes with other weights when it is overwritten. So only files of our own store are mapped; all others
are read. Opening checks the header and reserves memory; a `WeightStream` brings the bytes.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.disk import DiskFile
from flashgen_runtime.loader.memory import DEFAULT_THREADS, Region, arena, map_file, rounded_up
from flashgen_runtime.loader.safetensors_header import SafetensorsHeader, TensorEntry, read_header
from flashgen_runtime.loader.stream import stream

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

# Of a system's reads, where mapped pages cannot be asked for.
_SCRATCH_BYTES = 1 << 20


class OpenFile(ABC):
    """A file whose bytes come to memory by ranges, filled by a `WeightStream`.

    Attributes:
        header: checked.
    """

    def __init__(self, header: SafetensorsHeader, found: os.stat_result) -> None:
        self.header = header
        self._found = found

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def data_start(self) -> int:
        return self.header.data_start

    @property
    def size(self) -> int:
        """In bytes, with the header."""
        return self._found.st_size

    @abstractmethod
    def tensor(self, name: str) -> torch.Tensor:
        """One tensor over the file's memory; a copy where it does not lie on a multiple of its item's size.

        A copy has what has arrived until then: `range_of` says what should have.
        """

    @abstractmethod
    def take(self, name: str) -> torch.Tensor:
        """As `tensor`, at most once for each name, and nothing else of the file lies there any more."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, in the order in which they lie."""
        return {name: self.tensor(name) for name in in_file_order(self.header)}

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype; raises `WeightsError` where torch does not have it."""
        return torch_dtype(self.path, name, self.header.tensors[name])

    def range_of(self, name: str) -> tuple[int, int]:
        """Where a tensor begins and ends, in bytes from the file's beginning."""
        entry = self.header.tensors[name]
        return self.data_start + entry.start, self.data_start + entry.end

    @abstractmethod
    def begin(self) -> None:
        """Opens the file; raises `WeightsError`."""

    @abstractmethod
    def fetch(self, start: int, end: int) -> None:
        """Returns when a range is in memory; several threads may call it. Raises `WeightsError`."""

    @abstractmethod
    def check(self) -> None:
        """Raises `WeightsError` if the file is not any more the one whose header was read."""

    @abstractmethod
    def end(self) -> None:
        """Closes the file; the memory stays."""

    def _shaped(self, name: str, flat: torch.Tensor) -> torch.Tensor:
        entry = self.header.tensors[name]
        dtype = self.dtype(name)
        if flat.data_ptr() % dtype.itemsize:
            flat = flat.clone()
        return flat.view(dtype).view(entry.shape) if flat.numel() else flat.new_empty(entry.shape, dtype=dtype)


class HostFile(OpenFile):
    """A file in the memory of this machine: made by `open_mapped` or `open_arena`.

    Attributes:
        region: of the whole file; an offset in it is an offset in the file.
    """

    def __init__(self, header: SafetensorsHeader, region: Region, found: os.stat_result) -> None:
        super().__init__(header, found)
        self.region = region
        self._taken: set[str] = set()

    def tensor(self, name: str) -> torch.Tensor:
        start, end = self.range_of(name)
        return self._shaped(name, self.region.tensor[start:end])

    def take(self, name: str) -> torch.Tensor:
        """Its pages are given back with it, and not with the last tensor of the file."""
        assert name not in self._taken, "the pages of a tensor are given back once"
        self._taken.add(name)
        return self._shaped(name, self.region.lend(*self.range_of(name)))


class MappedFile(HostFile):
    """Its pages are the page cache's."""

    _descriptor: int

    def begin(self) -> None:
        with named_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def fetch(self, start: int, end: int) -> None:
        with named_errors(self.path):
            try:
                is_there = self.region.populate(start, end)
            except OSError:
                self.check()
                raise
            if not is_there:
                self._read_ahead(start, end)

    def check(self) -> None:
        """A file that was removed from the store meanwhile is as good as before."""
        with named_errors(self.path):
            check_same(self.path, self._found, os.fstat(self._descriptor), fields=("st_dev", "st_ino", "st_size"))

    def end(self) -> None:
        os.close(self._descriptor)

    def _read_ahead(self, start: int, end: int) -> None:
        """Brings a range to the page cache; an error is one of this call, not the end of a process."""
        while start < end:
            count = len(os.pread(self._descriptor, min(_SCRATCH_BYTES, end - start), start))
            if not count:
                raise WeightsError(self.path, f"ends at byte {start} of {self.size}: it was truncated")
            start += count


class ArenaFile(HostFile):
    """Its bytes are copied to memory of our own."""

    _disk: DiskFile

    def begin(self) -> None:
        with named_errors(self.path):
            self._disk = DiskFile(self.path, self.size)

    def fetch(self, start: int, end: int) -> None:
        with named_errors(self.path):
            self.region.populate(start, end)
            self._disk.read(self.region, start, end)

    def check(self) -> None:
        with named_errors(self.path):
            check_same(self.path, self._found, self.path.stat(), fields=IDENTITY)

    def end(self) -> None:
        self._disk.close()


def open_mapped(path: Path) -> MappedFile:
    """Maps a file that never changes. Pages come when they are touched, or by a stream.

    Raises `WeightsError` if it is broken or unreadable.
    """
    with opened(path) as (header, descriptor, found):
        return MappedFile(header, map_file(descriptor, found.st_size), found)


def open_arena(path: Path) -> ArenaFile:
    """Reserves private memory for a file: zeros, until a stream reads it; raises as `open_mapped`."""
    with opened(path) as (header, _, found):
        return ArenaFile(header, arena(rounded_up(found.st_size)), found)


def map_store_file(path: Path, *, populate: bool = True, threads: int = DEFAULT_THREADS) -> HostFile:
    """As `open_mapped`, and all of it in memory. Without `populate` pages come when touched."""
    file = open_mapped(path)
    if populate:
        _fetch_all(file, threads=threads)
    return file


def read_into_arena(path: Path, *, threads: int = DEFAULT_THREADS) -> HostFile:
    """As `open_arena`, and all of it read; raises `WeightsError` also if it changes meanwhile."""
    file = open_arena(path)
    _fetch_all(file, threads=threads)
    return file


def in_file_order(header: SafetensorsHeader) -> list[str]:
    """The names of a file's tensors by their place."""
    return sorted(header.tensors, key=lambda name: (header.tensors[name].start, header.tensors[name].end))


def _fetch_all(file: OpenFile, *, threads: int) -> None:
    with stream([file], threads=threads).start() as bytes_of_file:
        bytes_of_file.wait()


@contextmanager
def opened(path: Path) -> Iterator[tuple[SafetensorsHeader, int, os.stat_result]]:
    """Gives a file's checked header, a descriptor and what the system says of it, all of the same file."""
    with named_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            header = read_header(path)
            check_same(path, found, path.stat(), fields=IDENTITY)
            yield header, descriptor, found
        finally:
            os.close(descriptor)


# What tells a file from another, and from itself after a change.
IDENTITY = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")


def check_same(path: Path, before: os.stat_result, after: os.stat_result, *, fields: tuple[str, ...]) -> None:
    """Raises `WeightsError` unless a file is what it was."""
    if after.st_size < before.st_size and after.st_ino == before.st_ino:
        raise WeightsError(
            path, f"ends at byte {after.st_size} of {before.st_size}: it was truncated while it was read"
        )
    if any(getattr(before, field) != getattr(after, field) for field in fields):
        raise WeightsError(path, "was changed while it was read")


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """What the system refuses becomes a `WeightsError` that names the file."""
    try:
        yield
    except OSError as error:
        problem = (
            "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
        )
        raise WeightsError(path, problem) from error


def torch_dtype(path: Path, name: str, entry: TensorEntry) -> torch.dtype:
    """A tensor's dtype; raises `WeightsError` for one that torch does not have."""
    try:
        return DTYPES[entry.dtype]
    except KeyError as error:
        raise WeightsError(path, f"tensor `{name}` has the dtype {entry.dtype}, which torch does not have") from error
