"""`save_dict` and `load_dict` give tensors back bit for bit, and say what is wrong with a file."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader import reader
from flashgen_runtime.loader.reader import DTYPES
from flashgen_runtime.loader.safetensors_header import read_header
from flashgen_runtime.loader.state_dict import ALIASES_KEY, load_dict, save_dict

SHAPES = st.lists(st.integers(0, 7), max_size=3)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, list[int], bytes]:
    """What a tensor is, comparable for every dtype."""
    flat = tensor.contiguous().as_strided((tensor.numel(),), (1,))
    return tensor.dtype, list(tensor.shape), bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any dtype, shape and stride, with random bits."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(SHAPES)
    count = 1
    for size in shape:
        count *= size
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 31)))
    high = 2 if dtype is torch.bool else 256
    raw = torch.randint(0, high, (2 * count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    tensor = (raw.view(dtype) if count else torch.empty(0, dtype=dtype))[: 2 * count]
    tensor = tensor[::2] if draw(st.booleans()) else tensor[count:]
    tensor = tensor.reshape(shape) if count else torch.empty(shape, dtype=dtype)
    return tensor.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else tensor


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"), tensors(), max_size=6))
@pytest.mark.parametrize("mode", ["arena", "map"])
def test_random_state_dicts_survive(tmp_path: Path, mode: str, state: dict[str, torch.Tensor]) -> None:
    """Every dtype, shape, stride and name comes back as it was."""
    save_dict(state, tmp_path / "file.safetensors")
    found = load_dict(tmp_path / "file.safetensors", mode=mode, verify=True)  # type: ignore[arg-type]
    assert {name: bits(tensor) for name, tensor in found.items()} == {name: bits(state[name]) for name in state}


def test_other_readers_take_the_file(tmp_path: Path) -> None:
    """safetensors' own reader finds the same tensors."""
    state = {"odd": torch.arange(5.0), "even": torch.arange(128.0), "bf16": torch.ones(3, 3, dtype=torch.bfloat16)}
    save_dict(state, tmp_path / "file.safetensors")
    found = load_file(tmp_path / "file.safetensors")
    assert {name: bits(tensor) for name, tensor in found.items()} == {name: bits(state[name]) for name in state}


def test_layout_is_aligned(tmp_path: Path) -> None:
    """Data begins at a multiple of 4096, tensors at multiples of 256, in the caller's order, odd sizes last."""
    state = {"a": torch.zeros(5), "b": torch.zeros(64), "c": torch.zeros(128), "d": torch.zeros(3)}
    save_dict(state, tmp_path / "file.safetensors")
    header = read_header(tmp_path / "file.safetensors")
    assert header.data_start % 4096 == 0
    assert [header.tensors[name].start for name in "bc"] == [0, 256]
    assert reader.in_file_order(header) == ["b", "c", "a", "d"]


def test_shared_memory_is_stored_once(tmp_path: Path) -> None:
    """Two names of one tensor take its bytes once, and are one tensor again; a view of a part is stored by itself."""
    weight = torch.arange(256.0)
    save_dict({"first": weight, "tied": weight, "part": weight[64:128]}, tmp_path / "file.safetensors")
    found = load_dict(tmp_path / "file.safetensors")
    assert found["tied"] is found["first"]
    assert torch.equal(found["part"], weight[64:128])
    assert "tied" not in read_header(tmp_path / "file.safetensors").tensors


def test_misaligned_foreign_file_loads(tmp_path: Path) -> None:
    """Tensors that lie at odd addresses in another writer's file are right."""
    state = {"bytes": torch.arange(3, dtype=torch.uint8), "doubles": torch.arange(4, dtype=torch.float64)}
    save_file(state, tmp_path / "file.safetensors")
    found = load_dict(tmp_path / "file.safetensors")
    assert {name: bits(tensor) for name, tensor in found.items()} == {name: bits(state[name]) for name in state}


def test_large_file_is_read_in_stripes(tmp_path: Path) -> None:
    """A file of several stripes, its end on no page, is whole whether the page cache holds it or not."""
    state = {"a": torch.arange(5_000_000, dtype=torch.int32), "b": torch.arange(777, dtype=torch.int16)}
    path = tmp_path / "file.safetensors"
    save_dict(state, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    for _ in range(2):
        found = load_dict(path, verify=True)
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_short_and_refused_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that reads a little at a time still gives the whole file."""
    state = {"a": torch.arange(100_000, dtype=torch.int32)}
    save_dict(state, tmp_path / "file.safetensors")
    original = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return original(descriptor, [buffers[0][: 4096 * 3]], offset)

    monkeypatch.setattr(os, "preadv", short)
    assert torch.equal(load_dict(tmp_path / "file.safetensors")["a"], state["a"])


@pytest.mark.parametrize("mode", ["arena", "map"])
def test_truncated_file_is_an_error(tmp_path: Path, mode: str) -> None:
    """A file that lost its end is refused by name before a tensor is made."""
    path = tmp_path / "file.safetensors"
    save_dict({"a": torch.zeros(1000)}, path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(WeightsError, match="truncated"):
        load_dict(path, mode=mode)  # type: ignore[arg-type]


def test_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the file is missed, not filled with zeros."""
    path = tmp_path / "file.safetensors"
    save_dict({"a": torch.zeros(100_000)}, path)
    original = reader.ArenaFile.begin

    def shrink(file: reader.ArenaFile) -> None:
        os.truncate(path, 8192)
        original(file)

    monkeypatch.setattr(reader.ArenaFile, "begin", shrink)
    with pytest.raises(WeightsError, match="truncated while it was read"):
        load_dict(path)


def test_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of two versions never mix."""
    path = tmp_path / "file.safetensors"
    save_dict({"a": torch.zeros(100_000)}, path)
    original = reader.ArenaFile.fetch

    def overwrite(file: reader.ArenaFile, start: int, end: int) -> None:
        original(file, start, end)
        with path.open("r+b") as other:
            other.seek(8192)
            other.write(b"other")

    monkeypatch.setattr(reader.ArenaFile, "fetch", overwrite)
    with pytest.raises(WeightsError, match="changed while it was read"):
        load_dict(path)


def test_damaged_data_fails_its_checksum(tmp_path: Path) -> None:
    """One flipped bit is found, and both checksums are named."""
    path = tmp_path / "file.safetensors"
    save_dict({"a": torch.zeros(1000)}, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256"):
        load_dict(path, verify=True)


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full the error says so, the old file stays, and nothing half-written lies beside it."""
    path = tmp_path / "file.safetensors"
    save_dict({"a": torch.ones(4)}, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WeightsError, match="No space left"):
        save_dict({"a": torch.zeros(4)}, path)
    monkeypatch.undo()
    assert torch.equal(load_dict(path)["a"], torch.ones(4))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("tensor", [torch.zeros(3).to_sparse(), torch.zeros(3, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_plain_data_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    """What safetensors cannot hold is an error that names the tensor."""
    with pytest.raises(WeightsError, match="`weight`"):
        save_dict({"weight": tensor}, tmp_path / "file.safetensors")


def test_lying_aliases_are_refused(tmp_path: Path) -> None:
    """Metadata that names a tensor which is not there is an error."""
    save_file({"a": torch.zeros(4)}, tmp_path / "file.safetensors", metadata={ALIASES_KEY: json.dumps({"b": "c"})})
    with pytest.raises(WeightsError, match="`b`"):
        load_dict(tmp_path / "file.safetensors")


def test_device_map_takes_the_longest_beginning(tmp_path: Path) -> None:
    """Tensors go where the longest beginning of their name says, and a name without a place is an error."""
    state = {"model.layers.0.weight": torch.zeros(4), "head.weight": torch.zeros(4)}
    save_dict(state, tmp_path / "file.safetensors")
    found = load_dict(tmp_path / "file.safetensors", {"": "cpu", "model": "cpu", "model.layers": "meta"})
    assert (found["model.layers.0.weight"].device.type, found["head.weight"].device.type) == ("meta", "cpu")
    with pytest.raises(WeightsError, match=r"`head\.weight`"):
        load_dict(tmp_path / "file.safetensors", {"model": "cpu"})


def shards(folder: Path, files: dict[str, dict[str, torch.Tensor]], **more: str) -> Path:
    """A checkpoint in several files with an index, which also says `more`."""
    for name, state in files.items():
        save_dict(state, folder / name)
    weight_map = {tensor: name for name in files for tensor in read_header(folder / name).tensors} | more
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_folder_is_all_of_its_files(tmp_path: Path) -> None:
    """Those that the index names, each of them checked."""
    first, second = torch.arange(4.0), torch.arange(5.0)
    folder = shards(tmp_path, {"1.safetensors": {"a": first}, "2.safetensors": {"b": second, "c": second}})

    found = load_dict(folder, verify=True)

    assert torch.equal(found["a"], first)
    assert torch.equal(found["b"], second)
    assert found["b"] is found["c"]


def test_what_an_index_says_is_not_believed(tmp_path: Path) -> None:
    """Files elsewhere, files that are not there, tensors that are not there or in two files."""
    one = {"1.safetensors": {"a": torch.ones(1)}}
    for more, problem in (
        ({"b": "../1.safetensors"}, "no safetensors file beside it"),
        ({"b": "/1.safetensors"}, "no safetensors file beside it"),
        ({"b": "3.safetensors"}, "no such file"),
        ({"b": "1.safetensors"}, "tensor `b` is not in `1.safetensors`"),
    ):
        with pytest.raises(WeightsError, match=problem):
            load_dict(shards(tmp_path, one, **more))
    with pytest.raises(WeightsError, match=r"2\.safetensors: holds tensor `a`, which `1\.safetensors` holds too"):
        load_dict(
            shards(tmp_path, one | {"2.safetensors": {"a": torch.zeros(1), "b": torch.zeros(1)}}, a="1.safetensors")
        )
