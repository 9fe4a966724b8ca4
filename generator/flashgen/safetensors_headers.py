"""The tensors of a checkpoint's safetensors files, from their headers alone.

Only what counting needs is checked; the runtime, which reads the data too, is the strict reader.
"""

import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_SINGLE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# Compared at once.
_CHUNK_BYTES = 1 << 20


class TensorInfo(NamedTuple):
    """Where one tensor lies and what it is."""

    # "F32", "BF16" …
    dtype: str
    shape: tuple[int, ...]
    file: Path

    # In the file.
    offset: int
    num_bytes: int

    @property
    def num_values(self) -> int:
        return prod(self.shape)


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """By name, all tensors of a checkpoint; raises `ValueError` where a file is missing or no safetensors file."""
    try:
        tensors: dict[str, TensorInfo] = {}
        for path in _files(folder):
            tensors |= _tensors_of(path)
    except (OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"`{folder.name}` cannot be read: {error}") from error
    return tensors


def have_equal_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors of one dtype and shape have the same values, compared until the first difference."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        left = one.num_bytes
        while left:
            size = min(left, _CHUNK_BYTES)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _files(folder: Path) -> list[Path]:
    if (folder / _SINGLE_FILE).exists():
        return [folder / _SINGLE_FILE]
    weight_map = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(weight_map.values()))]


def _tensors_of(path: Path) -> dict[str, TensorInfo]:
    file_size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, file_size - _LENGTH_BYTES):
            raise ValueError(f"`{path.name}` is no safetensors file")
        header: dict[str, Any] = json.loads(file.read(length).decode("utf-8"))
    data_start = _LENGTH_BYTES + length
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= file_size - data_start:
            raise ValueError(f"tensor `{name}` in `{path.name}` lies outside of the file")
        tensors[name] = TensorInfo(entry["dtype"], tuple(entry["shape"]), path, data_start + start, end - start)
    return tensors
