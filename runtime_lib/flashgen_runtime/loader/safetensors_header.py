"""Reads the header of a safetensors file and believes nothing in it.

Stricter than the reference implementation, which accepts duplicate keys, white space before the header and unknown
fields. The rules are those of the format's README: https://github.com/huggingface/safetensors#format
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flashgen_runtime.errors import WeightsError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000

BITS_BY_DTYPE = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies."""

    dtype: str
    shape: tuple[int, ...]

    # Bytes from the end of the header.
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A header whose entries cover the file's data exactly, without gap or overlap."""

    path: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]

    # Where the data begins, in bytes from the file's start.
    data_start: int


def read_header(path: Path) -> SafetensorsHeader:
    """Reads and checks a file's header; raises `WeightsError` that names the file and the tensor."""
    try:
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            header_size = _header_size(path, file.read(LENGTH_BYTES), file_size=file_size)
            text = file.read(header_size)
    except OSError as error:
        raise WeightsError(path, _os_problem(error)) from error
    data_start = LENGTH_BYTES + header_size
    if len(text) < header_size:
        raise WeightsError(path, "was truncated while it was read")
    fields = _parse(path, text)
    metadata = _metadata(path, fields.pop("__metadata__", {}))
    tensors = {name: _entry(path, name, entry) for name, entry in fields.items()}
    _check_cover(path, tensors, num_bytes=file_size - data_start)
    return SafetensorsHeader(path, tensors, metadata, data_start)


def _os_problem(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"


def _header_size(path: Path, length: bytes, *, file_size: int) -> int:
    if len(length) < LENGTH_BYTES:
        raise WeightsError(path, f"has {file_size} bytes, too few for a safetensors file")
    header_size = int.from_bytes(length, "little")
    if header_size > MAX_HEADER_BYTES:
        problem = f"is no safetensors file: its header would have {header_size} bytes, more than {MAX_HEADER_BYTES}"
        raise WeightsError(path, problem)
    if header_size > file_size - LENGTH_BYTES:
        problem = f"is truncated: its header has {header_size} bytes, the whole file only {file_size}"
        raise WeightsError(path, problem)
    return header_size


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise WeightsError(path, "is no safetensors file: its header does not begin with `{`")
    try:
        fields = json.loads(
            text.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, f"its header is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise WeightsError(path, "its header is not a JSON object")
    return fields


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"the key {key!r} stands there twice")
        # Raises UnicodeEncodeError, a ValueError, for a surrogate without its other half.
        for text in (key, value):
            if isinstance(text, str):
                text.encode("utf-8")
        fields[key] = value
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError(path, "its `__metadata__` is not an object of strings")
    return metadata


def _entry(path: Path, name: str, entry: Any) -> TensorEntry:
    """One tensor's entry, with a size that fits its dtype and shape."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _bad_tensor(path, name, "must have `dtype`, `shape` and `data_offsets`, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS_BY_DTYPE:
        raise _bad_tensor(path, name, f"has the unknown dtype {dtype!r}")
    if not _are_sizes(shape):
        raise _bad_tensor(path, name, f"has the shape {shape!r}, which is no list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad_tensor(path, name, f"has the offsets {offsets!r}, which are no range")
    num_bits = math.prod(shape) * BITS_BY_DTYPE[dtype]
    if num_bits != (offsets[1] - offsets[0]) * 8:
        problem = f"has {offsets[1] - offsets[0]} bytes, but {dtype} {shape} takes {num_bits / 8:.15g}"
        raise _bad_tensor(path, name, problem)
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _check_cover(path: Path, tensors: dict[str, TensorEntry], *, num_bytes: int) -> None:
    """Raises unless the tensors cover `num_bytes` bytes one after the other."""
    covered = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.end > num_bytes:
            problem = f"ends at byte {entry.end} of {num_bytes} bytes of data: the file is truncated"
            raise _bad_tensor(path, name, problem)
        if entry.start != covered:
            problem = f"begins at byte {entry.start}, the tensor before it ends at {covered}"
            raise _bad_tensor(path, name, problem)
        covered = entry.end
    if covered != num_bytes:
        raise WeightsError(path, f"has {num_bytes} bytes of data, its tensors only {covered}")


def _bad_tensor(path: Path, name: str, problem: str) -> WeightsError:
    return WeightsError(path, f"tensor `{name}` {problem}")
