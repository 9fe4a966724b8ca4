"""Which way a file of weights is opened: files of our own store are mapped, all others read into private memory."""

import os
import stat
from pathlib import Path
from typing import Literal

from flashgen_runtime.loader.manifest import MANIFEST_NAME
from flashgen_runtime.loader.reader import HostFile, open_arena, open_mapped

Mode = Literal["auto", "map", "arena"]

# The folder of a store whose folders hold prepared files.
PREPARED_FOLDER = "prepared"


def open_weights(path: Path, mode: Mode = "auto") -> HostFile:
    """Opens a file, nothing of it fetched yet; raises `WeightsError`.

    Args:
        path: the file.
        mode: "map" shares the page cache, for files that nobody ever changes; "arena" takes private memory; "auto" maps
            what `is_store_file` says nobody changes.
    """
    is_mapped = mode == "map" or (mode == "auto" and is_store_file(path))
    return open_mapped(path) if is_mapped else open_arena(path)


def is_store_file(path: Path) -> bool:
    """Whether it lies in a store and nobody may write it."""
    path = Path(os.path.realpath(path))
    is_stored = (path.parent / MANIFEST_NAME).is_file() or path.parent.parent.name == PREPARED_FOLDER
    return is_stored and path.is_file() and not stat.S_IMODE(path.stat().st_mode) & 0o222
