"""Safetensors files laid out for fast loading, which appear whole or not at all.

The data begins at a multiple of 4096 bytes (the header is padded with spaces, as the format allows) and every tensor at
a multiple of 256, those whose size is no such multiple standing last, since the format knows no gaps.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from flashgen_runtime.errors import NotWrittenError
from flashgen_runtime.loader.reader import DTYPES

LAYOUT_KEY = "flashgen.layout"
LAYOUT = "aligned-1"
CHECKSUM_KEY = "flashgen.sha256"

DATA_ALIGNMENT = 4096
TENSOR_ALIGNMENT = 256

# Tensors are written in pieces, so that one that is strided or on a card costs little memory.
PIECE_BYTES = 64 << 20

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


# Takes a tensor by its name.
Write = Callable[[str, torch.Tensor], None]


def write_aligned(
    path: Path,
    shapes: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    give: Callable[[Write], None],
    *,
    mode: int | None = None,
) -> None:
    """Writes a file of tensors that are made one after the other; it appears complete or not at all.

    Args:
        path: in a folder that is there.
        shapes: every tensor's dtype and shape; values do not count, so they may be on the meta device.
        metadata: the checksum is added to it.
        give: calls what it is given once for each tensor, in the order of `shapes`. Tensors whose size is no multiple
            of 256, which are small ones, are kept until the end; others are written and not kept.
        mode: permissions of the file; `None` leaves them to the process's umask.

    Raises:
        NotWrittenError: it cannot be written, as on a full disk; a `WeightsError`.
    """
    ordered = in_aligned_order(shapes)
    size = sum(shapes[name].nbytes for name in ordered)
    digest = hashlib.sha256()
    kept: dict[str, torch.Tensor] = {}

    def write(name: str, tensor: torch.Tensor) -> None:
        assert (tensor.dtype, tensor.shape) == (shapes[name].dtype, shapes[name].shape), f"`{name}` is as announced"
        if tensor.nbytes % TENSOR_ALIGNMENT:
            kept[name] = tensor.clone()
            return
        for piece in pieces_of(tensor):
            digest.update(piece)
            write_all(descriptor, piece)

    try:
        with appearing_whole(path, mode=mode) as descriptor:
            header = header_of(shapes, ordered, {**metadata, CHECKSUM_KEY: "0" * 64})
            if size:
                # A full disk says so now, not in the middle.
                os.posix_fallocate(descriptor, 0, len(header) + size)
            os.lseek(descriptor, len(header), os.SEEK_SET)
            give(write)
            for name in ordered:
                if name in kept:
                    for piece in pieces_of(kept[name]):
                        digest.update(piece)
                        write_all(descriptor, piece)
            os.pwrite(descriptor, header_of(shapes, ordered, {**metadata, CHECKSUM_KEY: digest.hexdigest()}), 0)
    except OSError as error:
        raise NotWrittenError(path, error) from error


def in_aligned_order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names in their order, except that those stand last whose size would put the next one out of line."""
    return sorted(tensors, key=lambda name: tensors[name].nbytes % TENSOR_ALIGNMENT != 0)


def header_of(tensors: Mapping[str, torch.Tensor], ordered: Iterable[str], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces so that the data begins aligned."""
    fields: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in ordered:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        fields[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    padded = -(-(8 + len(text)) // DATA_ALIGNMENT) * DATA_ALIGNMENT - 8
    return padded.to_bytes(8, "little") + text.ljust(padded)


def pieces_of(tensor: torch.Tensor) -> Iterator[memoryview]:
    """A tensor's values in row-major order, as bytes on the host."""
    if tensor.nbytes <= PIECE_BYTES or tensor.dim() == 0 or tensor.shape[0] == 1:
        if tensor.numel():
            plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
            # A tensor of one item may keep any stride.
            flat = plain.as_strided((plain.numel(),), (1,))
            yield flat.view(torch.uint8).numpy().data
        return
    rows = max(1, PIECE_BYTES * tensor.shape[0] // tensor.nbytes)
    for part in torch.split(tensor, rows):
        yield from pieces_of(part)


def write_all(descriptor: int, piece: memoryview) -> None:
    """Writes until all is written: a write may take less."""
    while piece:
        piece = piece[os.write(descriptor, piece) :]


@contextlib.contextmanager
def appearing_whole(path: Path, *, mode: int | None = None) -> Iterator[int]:
    """A descriptor of a file that gets its name when the block ends well, and vanishes otherwise."""
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if mode is None:
            umask = os.umask(0)
            os.umask(umask)
            mode = 0o666 & ~umask
        Path(part).chmod(mode)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
