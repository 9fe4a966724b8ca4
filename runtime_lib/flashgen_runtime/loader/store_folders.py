"""Folders of the store: a pulled one is checked and sealed, any of them measured and removed."""

import contextlib
import shutil
from pathlib import Path

import msgspec

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.checkpoint import read_headers
from flashgen_runtime.loader.fetch import sync
from flashgen_runtime.loader.manifest import CHECKPOINT_KEY, MANIFEST_NAME, Manifest
from flashgen_runtime.loader.safetensors_header import read_header


def check_weights(folder: Path) -> None:
    """Raises unless there are weights and all of their headers are sound."""
    read_headers(folder)
    for path in folder.glob("*.safetensors"):
        read_header(path)


def finish(folder: Path, manifest: Manifest) -> None:
    """Makes files read-only and safe on the disk, throws away what is not the checkpoint's, writes the manifest.

    In this order, so that what is killed while gigabytes go to the disk need not be fetched again.
    """
    names = {file.name for file in manifest.files}
    for name in names:
        (folder / name).chmod(0o444)
        sync(folder / name)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder).as_posix() not in names:
            path.unlink()
        elif path.is_dir():
            with contextlib.suppress(OSError):
                path.rmdir()
    (folder / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
    (folder / MANIFEST_NAME).chmod(0o444)
    sync(folder / MANIFEST_NAME)
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync(path)


def weight_files(folder: Path) -> list[Path]:
    """By name."""
    return sorted(folder.glob("*.safetensors"))


def checkpoint_of(prepared: Path) -> str:
    """Where the checkpoint of a prepared file lies."""
    try:
        return read_header(prepared).metadata.get(CHECKPOINT_KEY, "")
    except WeightsError:
        return ""


def tree_bytes(folder: Path) -> int:
    """Of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove_tree(folder: Path) -> int:
    """Removes a folder as far as it can be; gives the bytes that were in it."""
    num_bytes = tree_bytes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return num_bytes
