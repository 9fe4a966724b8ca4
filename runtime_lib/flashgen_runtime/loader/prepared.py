"""Prepared files: weights as the kernels want them, made once from a checkpoint, then only mapped.

    <store>/prepared/<checkpoint>/bfloat16-int8-panels.safetensors

A file is a function of the checkpoint and of its kind. Its metadata holds a digest of both, so that a stale one is
noticed and made anew, and whoever asks while it is made waits for it. Files appear whole and never change, which is why
they may be mapped: their pages are shared between processes, and a model that is swapped out costs nothing to drop.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from flashgen_runtime.errors import NotWrittenError, WeightsError
from flashgen_runtime.loader.aligned_file import LAYOUT, LAYOUT_KEY, Write, in_aligned_order, write_aligned
from flashgen_runtime.loader.locks import locked
from flashgen_runtime.loader.manifest import CHECKPOINT_KEY, MANIFEST_NAME, read_manifest
from flashgen_runtime.loader.reader import DTYPES
from flashgen_runtime.loader.safetensors_header import SafetensorsHeader, read_header
from flashgen_runtime.loader.store import Store, stored_name

# Raised whenever the layout of panels, the rounding or the order of tensors changes: files of other versions are stale.
VERSION = "1"

DIGEST_KEY = "flashgen.prepared"

# "panels": what the kernels read, on every processor alike. "generic": the checkpoint's own tensors, rows and names,
# which every reader takes.
Layout = Literal["panels", "generic"]

# What a checkpoint's files are called that decide what is prepared from it.
_DECISIVE = (".safetensors", ".json")

# The store never changes a file, and nobody else shall.
_READ_ONLY = 0o444


class PreparedKind(NamedTuple):
    """What is in a prepared file."""

    # "bfloat16": of the weights that are not quantised.
    dtype: str

    # "int8", "int4" or empty.
    quantization: str
    layout: Layout

    @property
    def file_name(self) -> str:
        return "-".join(filter(None, (self.dtype, self.quantization, self.layout))) + ".safetensors"


class PreparedFolder(NamedTuple):
    """Where the prepared files of one checkpoint lie."""

    path: Path
    lock: Path

    # Of everything in the checkpoint that they depend on.
    identity: str

    # For people: the checkpoint's folder.
    checkpoint: str


class MadeFile(NamedTuple):
    """A prepared file that is there."""

    header: SafetensorsHeader

    # Whether it was made by this call.
    is_new: bool


def prepared_folder(store: Store, checkpoint: Path) -> PreparedFolder:
    """Of a model of the store, or of a folder elsewhere, which is known by its files' sizes and times."""
    is_stored = (checkpoint / MANIFEST_NAME).is_file()
    name = checkpoint.name if is_stored else stored_name(str(checkpoint.resolve()), "")
    identity = _manifest_identity(checkpoint) if is_stored else _stat_identity(checkpoint)
    return PreparedFolder(
        store.root / "prepared" / name, store.root / "locks" / f"prepared-{name}", identity, str(checkpoint)
    )


def find_prepared(
    folder: PreparedFolder, kind: PreparedKind, shapes: Mapping[str, torch.Tensor] | None = None
) -> SafetensorsHeader | None:
    """The file of this kind if it is there, whole, up to date and holds just these tensors; else `None`.

    Without `shapes` the caller looks at the tensors.
    """
    path = folder.path / kind.file_name
    if not path.is_file():
        return None
    try:
        header = read_header(path)
    except WeightsError:
        return None
    is_current = header.metadata.get(DIGEST_KEY) == _digest(folder, kind)
    return header if is_current and (shapes is None or _holds(header, shapes)) else None


def make_prepared(
    folder: PreparedFolder,
    kind: PreparedKind,
    shapes: Mapping[str, torch.Tensor],
    give: Callable[[Write], None],
    *,
    metadata: Mapping[str, str] | None = None,
) -> MadeFile:
    """The file of this kind, made unless it is there; of several that ask at once one makes it.

    Args:
        folder: of the checkpoint.
        kind: what to make.
        shapes: the tensors in their order, on any device.
        give: hands out their values, as `write_aligned` wants it.
        metadata: what the file says besides.

    Raises:
        NotWrittenError: it cannot be written, as on a full disk; a `WeightsError`.
        WeightsError: what `give` raises.
    """
    path = folder.path / kind.file_name
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        with locked(folder.lock):
            found = find_prepared(folder, kind, shapes)
            if found is not None:
                return MadeFile(found, is_new=False)
            _remove_parts(path)
            own = {
                "format": "pt",
                LAYOUT_KEY: LAYOUT,
                DIGEST_KEY: _digest(folder, kind),
                CHECKPOINT_KEY: folder.checkpoint,
            }
            write_aligned(path, shapes, own | dict(metadata or {}), give, mode=_READ_ONLY)
    except OSError as error:
        raise NotWrittenError(error.filename or path, error) from error
    return MadeFile(read_header(path), is_new=True)


def can_prepare(folder: PreparedFolder) -> bool:
    """Whether files can be written there."""
    parent = next(path for path in (folder.path, *folder.path.parents) if path.exists())
    return os.access(parent, os.W_OK)


def _holds(header: SafetensorsHeader, shapes: Mapping[str, torch.Tensor]) -> bool:
    if header.tensors.keys() != shapes.keys():
        return False
    entries = [header.tensors[name] for name in in_aligned_order(shapes)]
    is_ordered = all(one.end == other.start for one, other in pairwise(entries))
    return is_ordered and all(
        DTYPES.get(header.tensors[name].dtype) is tensor.dtype and header.tensors[name].shape == tuple(tensor.shape)
        for name, tensor in shapes.items()
    )


def _digest(folder: PreparedFolder, kind: PreparedKind) -> str:
    return _sha256_of([VERSION, folder.identity, *kind])


def _manifest_identity(checkpoint: Path) -> str:
    files = sorted(read_manifest(checkpoint).files, key=lambda file: file.name)
    return _sha256_of([[file.name, file.size, file.sha256] for file in files if file.name.endswith(_DECISIVE)])


def _stat_identity(checkpoint: Path) -> str:
    files = sorted(path for path in checkpoint.iterdir() if path.name.endswith(_DECISIVE))
    # Without the device's number: a volume has another one after each restart of its machine.
    found = [(path.name, path.stat()) for path in files]
    return _sha256_of([[name, stat.st_ino, stat.st_size, stat.st_mtime_ns] for name, stat in found])


def _sha256_of(value: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _remove_parts(path: Path) -> None:
    """What a killed process has left; we hold the lock, so nobody writes it."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        with suppress(FileNotFoundError):
            part.unlink()
