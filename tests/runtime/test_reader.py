"""Files come to memory whole and unchanged, or with an error that names them; nothing ends the process."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader import disk, load_dict, memory, reader, save_dict
from flashgen_runtime.loader.manifest import MANIFEST_NAME
from flashgen_runtime.loader.memory import STRIPE_BYTES, Region, cached_share
from flashgen_runtime.loader.opening import is_store_file, open_weights
from flashgen_runtime.loader.reader import (
    ArenaFile,
    MappedFile,
    map_store_file,
    open_arena,
    open_mapped,
    read_into_arena,
)
from flashgen_runtime.loader.stream import stream

READERS = pytest.mark.parametrize("read", [read_into_arena, map_store_file])
SIZE = 3 * STRIPE_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three stripes and a bit, cold."""
    file = tmp_path / "model.safetensors"
    save_dict({"a": torch.arange(SIZE // 8), "b": torch.arange(77, dtype=torch.int16)}, file)
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return file


def is_whole(file: reader.OpenFile) -> bool:
    expected = {"a": torch.arange(SIZE // 8), "b": torch.arange(77, dtype=torch.int16)}
    return all(torch.equal(file.tensor(name), tensor) for name, tensor in expected.items())


@READERS
def test_files_are_read_whole(path: Path, read: Callable[[Path], reader.OpenFile]) -> None:
    """Twice: past the page cache, and from it."""
    assert is_whole(read(path))
    path.read_bytes()
    assert is_whole(read(path))


def test_systems_without_the_newer_calls(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages cannot be asked for (old kernels say EINVAL) mapped files are read ahead, and arenas are touched."""
    monkeypatch.setattr(memory, "_advise", lambda *_: 22)

    assert is_whole(map_store_file(path))
    assert is_whole(read_into_arena(path))
    with path.open("rb") as file:
        assert cached_share(file.fileno()) > 0.9


@pytest.mark.parametrize("step", ["open", "read"])
def test_file_systems_without_direct_reads(path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Some refuse to open past the page cache, some take the flag and refuse the read."""
    original = os.open if step == "open" else os.preadv

    def refuse(first: Any, second: Any, *rest: Any, **named: Any) -> int:
        is_direct = second & os.O_DIRECT if step == "open" else disk._is_direct(first)
        if is_direct:
            raise OSError(22, "Invalid argument")
        return original(first, second, *rest, **named)

    monkeypatch.setattr(os, "open" if step == "open" else "preadv", refuse)

    assert is_whole(read_into_arena(path))


def test_reads_that_stop_anywhere_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A direct read that ends between two pages is not continued there, which the system would refuse."""
    original = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = original(descriptor, [buffers[0][: 1 << 20]], offset)
        return count - 1000 if count > 4096 else count

    monkeypatch.setattr(os, "preadv", short)

    assert is_whole(read_into_arena(path))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_read_error_names_the_file(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Wherever in the file it comes."""
    original = os.preadv

    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset >= number * STRIPE_BYTES:
            raise OSError(5, "Input/output error")
        return original(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail)
    file = open_arena(path)

    expected = pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read: Input/output error")
    with stream([file]).start() as arriving, expected:
        arriving.wait()


def test_truncation_under_a_mapping_is_an_error_of_the_stream(path: Path) -> None:
    """The system's answer to the request for pages stands in the place of SIGBUS."""
    file = open_mapped(path)
    os.truncate(path, STRIPE_BYTES)

    with stream([file], threads=1).start() as arriving:
        arriving.wait_for(file, STRIPE_BYTES)
        with pytest.raises(WeightsError, match="truncated"):
            arriving.wait()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 4095, 4096, 4097, STRIPE_BYTES, SIZE, SIZE + 4095])
@pytest.mark.parametrize("open_file", [open_arena, open_mapped])
def test_truncated_files_are_not_opened(path: Path, length: int, open_file: Callable[[Path], object]) -> None:
    """At every boundary of length, header, page and stripe."""
    os.truncate(path, length)

    with pytest.raises(WeightsError):
        open_file(path)


@pytest.mark.parametrize("when", ["before it is opened", "while it is read"])
def test_a_replaced_file_is_found(path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Header and data are of the same file, even where both files have equal headers."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    opening = (reader, "read_header") if when.startswith("before") else (ArenaFile, "begin")
    original = getattr(*opening)

    def replace(*arguments: Any) -> Any:
        other.replace(path)
        return original(*arguments)

    monkeypatch.setattr(*opening, replace)

    with pytest.raises(WeightsError, match="was changed while it was read"):
        read_into_arena(path)


# In a process of its own, which SIGBUS would end.
DAMAGE = """
import os, sys, torch
from pathlib import Path
from flashgen_runtime.loader import load_dict
first, second = map(Path, sys.argv[1:])
found, other = load_dict(first), load_dict(second)
os.truncate(first, 4096)
second.write_bytes(b"\\xff" * second.stat().st_size)
assert torch.equal(found["a"], torch.arange(len(found["a"])))
assert torch.equal(found["a"], other["a"])
"""


def test_what_happens_to_the_file_later_does_not_matter(path: Path) -> None:
    """A process that has read files neither dies when one is truncated nor sees what is written over another."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    subprocess.run([sys.executable, "-c", DAMAGE, str(path), str(other)], env=environment, check=True)


@READERS
def test_memory_lives_as_long_as_a_tensor_over_it(path: Path, read: Callable[[Path], reader.OpenFile]) -> None:
    """The last one takes it along, also when it was one of those that give back their own pages."""
    file = read(path)
    address = file.region.address
    kept = file.tensor("b")
    taken = file.take("a")
    del file
    gc.collect()
    assert is_mapped(address)
    assert torch.equal(taken, torch.arange(SIZE // 8))

    del taken
    assert is_mapped(address)
    del kept

    assert not is_mapped(address)


def is_mapped(address: int) -> bool:
    ranges = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


def test_reading_takes_no_more_memory_than_the_file(path: Path) -> None:
    """Beside the arena nothing grows with the file: no copy, no buffer."""
    size = 96 << 20
    save_dict({"a": torch.zeros(size, dtype=torch.uint8)}, path)
    # The largest resident size so far is forgotten.
    Path("/proc/self/clear_refs").write_text("5")
    before = largest_resident_bytes()

    found = load_dict(path, mode="arena")

    assert size <= found["a"].nbytes <= largest_resident_bytes() - before < size + (12 << 20)


def largest_resident_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("is_known", [True, False], ids=["cachestat", "mincore"])
def test_how_much_of_a_file_is_cached(path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool) -> None:
    """Both calls of the system tell a cold file from a hot one."""
    if not is_known:
        monkeypatch.setattr(memory, "_cached_pages", lambda *_: None)
    with path.open("rb") as file:
        cold = cached_share(file.fileno())
        file.read()

        assert cold < 0.5
        assert cached_share(file.fileno()) > 0.9


def test_files_of_a_store_are_mapped_and_all_others_read(path: Path, tmp_path: Path) -> None:
    """Beside a manifest, or below a folder of prepared files, and only where nobody may write them."""
    stored, prepared = tmp_path / "stored" / path.name, tmp_path / "prepared" / "model" / path.name
    for target in (stored, prepared):
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes())
        target.chmod(0o444)
    (stored.parent / MANIFEST_NAME).write_text("{}")
    link = tmp_path / "link.safetensors"
    link.symlink_to(stored)

    assert [type(open_weights(file)) for file in (path, stored, prepared, link)] == [ArenaFile, *[MappedFile] * 3]
    stored.chmod(0o644)
    assert not is_store_file(stored)
    assert type(open_weights(path, "map")) is MappedFile


def test_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    """And no endless loop."""
    link = tmp_path / "model.safetensors"
    link.symlink_to(link)

    with pytest.raises(WeightsError, match="symbolic links"):
        open_weights(link)


def test_an_empty_range_is_lent() -> None:
    """A tensor without values takes no memory."""
    assert Region.lend(memory.arena(10), 5, 5).numel() == 0
