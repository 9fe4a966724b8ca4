"""The header parser believes nothing: every lie is a `WeightsError` that names the file."""

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.safetensors_header import BITS_BY_DTYPE, MAX_HEADER_BYTES, TensorEntry, read_header

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
VALID = save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, metadata={"format": "pt"})


def file_of(header: Any, data: bytes = b"\0" * 24) -> bytes:
    """A safetensors file: a header as an object or as text, and its data."""
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return path


def test_valid_file(tmp_path: Path) -> None:
    """What the reference implementation writes is read with all its entries."""
    header = read_header(written(tmp_path, VALID))

    assert header.tensors["a"] == TensorEntry("F32", (2, 3), 0, 24)
    assert header.tensors["b"].shape == (4,)
    assert header.metadata == {"format": "pt"}
    assert header.data_start % 8 == 0


def test_padded_header_and_empty_tensors(tmp_path: Path) -> None:
    """Trailing spaces are allowed, and so are tensors without elements and files without tensors."""
    empty = {"dtype": "F32", "shape": [0, 3], "data_offsets": [24, 24]}

    padded = read_header(written(tmp_path, file_of(json.dumps({"a": ENTRY, "e": empty}) + "   ")))

    assert set(padded.tensors) == {"a", "e"}
    assert read_header(written(tmp_path, file_of({}, b""))).tensors == {}


def changed(**fields: Any) -> dict[str, Any]:
    return {"a": {**ENTRY, **fields}}


LIES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "has 0 bytes"),
    "shorter than a length": (b"\1\0\0", "has 3 bytes"),
    "header beyond the file": (struct.pack("<Q", 1000) + b"{}", "is truncated: its header has 1000 bytes"),
    "absurd length": (struct.pack("<Q", 1 << 63) + b"{}", "is no safetensors file"),
    "no header": (file_of("", b""), "does not begin with `{`"),
    "pickle": (b"\x80\x04" + b"pickle" * 20, "is no safetensors file"),
    "a list": (file_of("[1]"), "does not begin with `{`"),
    "white space first": (file_of(" {}"), "does not begin with `{`"),
    "broken JSON": (file_of('{"a": '), "not valid JSON"),
    "text after it": (file_of("{} x"), "not valid JSON"),
    "NaN": (file_of('{"a": NaN}'), "NaN is no JSON number"),
    "not UTF-8": (struct.pack("<Q", 4) + b'{"\xff}', "not valid JSON"),
    "half a surrogate": (file_of('{"\\ud800": 1}'), "not valid JSON"),
    "half a surrogate in the metadata": (file_of('{"__metadata__": {"a": "\\ud83d"}}'), "not valid JSON"),
    "too deep": (file_of('{"a":' * 100_000), "not valid JSON"),
    "duplicate key": (file_of(f'{{"a": {json.dumps(ENTRY)}, "a": {json.dumps(ENTRY)}}}'), "'a' stands there twice"),
    "metadata of numbers": (file_of({"a": ENTRY, "__metadata__": {"n": 1}}), "not an object of strings"),
    "entry is a list": (file_of({"a": []}), "tensor `a` must have"),
    "unknown field": (file_of(changed(stride=1)), "tensor `a` must have"),
    "missing field": (file_of({"a": {"dtype": "F32", "shape": [6]}}), "tensor `a` must have"),
    "unknown dtype": (file_of(changed(dtype="F31")), "unknown dtype 'F31'"),
    "dtype is a list": (file_of(changed(dtype=["F32"])), "unknown dtype"),
    "negative size": (file_of(changed(shape=[-2, -3])), "no list of sizes"),
    "size is a boolean": (file_of(changed(shape=[True, 6])), "no list of sizes"),
    "size is a float": (file_of(changed(shape=[2.0, 3])), "no list of sizes"),
    "size beyond 64 bits": (file_of(changed(shape=[1 << 64])), "no list of sizes"),
    "three offsets": (file_of(changed(data_offsets=[0, 24, 24])), "are no range"),
    "backward offsets": (file_of(changed(data_offsets=[24, 0])), "are no range"),
    "size does not fit shape": (file_of(changed(shape=[2, 4])), "has 24 bytes, but F32 [2, 4] takes 32"),
    "product overflows": (file_of(changed(shape=[1 << 62, 1 << 62])), "has 24 bytes, but"),
    "does not begin at 0": (file_of(changed(data_offsets=[8, 32]), b"\0" * 32), "begins at byte 8"),
    "truncated data": (file_of({"a": ENTRY}, b"\0" * 23), "tensor `a` ends at byte 24 of 23 bytes"),
    "data left over": (file_of({"a": ENTRY}, b"\0" * 25), "has 25 bytes of data, its tensors only 24"),
    "overlap": (
        file_of({"a": ENTRY, "b": {"dtype": "U8", "shape": [8], "data_offsets": [20, 28]}}, b"\0" * 28),
        "tensor `b` begins at byte 20, the tensor before it ends at 24",
    ),
    "gap": (
        file_of({"a": ENTRY, "b": {"dtype": "U8", "shape": [2], "data_offsets": [26, 28]}}, b"\0" * 28),
        "tensor `b` begins at byte 26",
    ),
    "half a byte": (file_of({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"\0\0"), "takes 1.5"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_is_named(tmp_path: Path, lie: str) -> None:
    """A file that is not what it says is refused with its name and what is wrong."""
    content, problem = LIES[lie]
    path = written(tmp_path, content)

    with pytest.raises(WeightsError) as caught:
        read_header(path)

    assert caught.value.path == path
    assert problem in caught.value.problem


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(WeightsError, match=r"gone\.safetensors: no such file"):
        read_header(tmp_path / "gone.safetensors")


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """What cannot be read is named with the system's reason."""
    with pytest.raises(WeightsError, match="Is a directory"):
        read_header(tmp_path)


@pytest.mark.parametrize("length", range(len(VALID)))
def test_truncated_anywhere(tmp_path: Path, length: int) -> None:
    """A file cut off at any place is refused."""
    with pytest.raises(WeightsError):
        read_header(written(tmp_path, VALID[:length]))


def test_header_of_100_megabytes(tmp_path: Path) -> None:
    """The largest that the format allows is read; one byte more is refused before any of it is."""
    text = json.dumps({"a": ENTRY}).encode()
    path = written(tmp_path, struct.pack("<Q", MAX_HEADER_BYTES) + text.ljust(MAX_HEADER_BYTES) + b"\0" * 24)

    assert read_header(path).data_start == MAX_HEADER_BYTES + 8

    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + text)
    with pytest.raises(WeightsError, match="more than 100000000"):
        read_header(path)


INSERTED = (
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\\", b"\\u0000", b"\\ud83d", b"\\ud83d\\ude00", b"\xff"),
    *(b"0", b"-", b"1e3", b"1.0", b"-0", b"9" * 30, b"null", b"true", b"NaN", b'"a":', b"[" * 200, b'{"a":' * 200),
    *map(str.encode, BITS_BY_DTYPE),
)


def mutated(draw: random.Random) -> bytes:
    """A valid file with up to three places of its header replaced; its length is right, or one byte of it is not."""
    size = int.from_bytes(VALID[:8], "little")
    text, data = VALID[8 : 8 + size], VALID[8 + size :]
    for _ in range(draw.choice((1, 1, 2))):
        place, removed = draw.randrange(len(text) + 1), draw.choice((0, 0, 1, 1, 2, 6))
        inserted = draw.choice((draw.choice(INSERTED), draw.randbytes(1), text[place : place + draw.randint(1, 70)]))
        text = text[:place] + inserted + text[place + removed :]
    length = bytearray(struct.pack("<Q", len(text)))
    if draw.random() < 0.05:
        length[draw.randrange(8)] ^= 1 << draw.randrange(8)
    return bytes(length) + text + data[: draw.choice((len(data), len(data), len(data), draw.randrange(len(data))))]


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 40), marks=pytest.mark.slow)], ids=["3000", "37000"])
def test_mutations_are_read_as_the_reference_reads_them_or_refused(seeds: range) -> None:
    """A damaged file raises nothing but `WeightsError`, and nothing is read that the reference refuses.

    With one exception: it takes "-0" for no number of bytes, and we for 0.
    """
    descriptor = os.memfd_create("model")
    path = Path(f"/proc/self/fd/{descriptor}")
    num_read = 0
    for seed in seeds:
        draw = random.Random(seed)
        for _ in range(1000):
            content = mutated(draw)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
            try:
                header = read_header(path)
            except WeightsError:
                continue
            num_read += 1
            if b"-0" in content:
                continue
            found = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in safetensors.deserialize(content)}
            assert {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()} == found, content
    os.close(descriptor)

    # Some change a name or the metadata only.
    assert num_read > 10 * len(seeds)
