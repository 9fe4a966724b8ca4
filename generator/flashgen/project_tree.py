"""Reads a project's files without leaving its folder, and writes many of them as one step.

Writing has two phases: everything is written below `.flashgen/tmp/` first, so that a full disk changes nothing; then
each file is renamed to its place. A run that is killed in between is healed by the next.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from flashgen.errors import TreeError
from flashgen.project_folder import RECORD_FOLDER

_STAGING = f"{RECORD_FOLDER}/tmp"


class Write(NamedTuple):
    """Puts a content at a path."""

    path: str
    content: bytes
    mode: int = 0o644


class Move(NamedTuple):
    """Renames a file."""

    old_path: str
    path: str


class Remove(NamedTuple):
    """Removes a file, and the folders that it leaves empty."""

    path: str


Step = Write | Move | Remove


def read_files(project_folder: Path, paths: Iterable[str]) -> dict[str, bytes | None]:
    """The contents of a project's files by path, `None` where there is no file.

    Raises `TreeError` for what is no file, cannot be read, or lies outside the project through a symbolic link.
    """
    root = os.path.realpath(project_folder)
    inside: set[str] = {""}
    return {path: _read(root, path, inside) for path in sorted(paths)}


def apply(project_folder: Path, steps: list[Step]) -> None:
    """Does all steps in their order; raises `TreeError` that says whether anything was changed."""
    if not steps:
        return
    root = str(project_folder)
    with _errors_as("nothing was changed"):
        staging = _stage(root, steps)
    with _errors_as("some files are written already; build again, and it continues from there"):
        folders: set[str] = set()
        for index, step in enumerate(steps):
            _do(root, step, f"{staging}/{index}", folders)
        shutil.rmtree(staging)


def _read(root: str, path: str, inside: set[str]) -> bytes | None:
    _refuse_outside(root, path, inside)
    try:
        with open(f"{root}/{path}", "rb") as file:  # noqa: PTH123 - pathlib doubles the time of a build's reading
            return file.read()
    except FileNotFoundError:
        return None
    except (IsADirectoryError, NotADirectoryError) as error:
        raise TreeError(
            f"`{path}` cannot be written: a folder or a file of another kind is in the way",
            paths=[path],
            hint="move it away and build again",
        ) from error
    except OSError as error:
        raise TreeError(f"`{path}` cannot be read: {error.strerror}", paths=[path]) from error


def _refuse_outside(root: str, path: str, inside: set[str]) -> None:
    """Looks at each part of a path once; `inside` holds those that were seen."""
    parts = path.split("/")
    for length in range(1, len(parts) + 1):
        part = "/".join(parts[:length])
        if part in inside:
            continue
        location = f"{root}/{part}"
        if os.path.islink(location) and not os.path.realpath(location).startswith(f"{root}/"):  # noqa: PTH114 - as above
            raise TreeError(
                f"`{path}` leads out of the project through a symbolic link",
                paths=[path],
                hint="replace the link by a folder or a file of the project",
            )
        inside.add(part)


def _stage(root: str, steps: list[Step]) -> str:
    staging = f"{root}/{_STAGING}"
    # What a killed run left is of no use.
    shutil.rmtree(staging, ignore_errors=True)
    Path(staging).mkdir(parents=True)
    try:
        _refuse_read_only(root, {os.path.dirname(step.path) for step in steps})  # noqa: PTH120 - text in, text out
        for index, step in enumerate(steps):
            if isinstance(step, Write):
                _write_new(f"{staging}/{index}", step.content, step.mode)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return staging


def _refuse_read_only(root: str, folders: set[str]) -> None:
    """Asks for the permission that renaming will need, in the nearest folders that exist."""
    for folder in folders:
        location = Path(root, folder)
        while not location.exists():
            location = location.parent
        if not os.access(location, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied", str(location))


def _write_new(location: str, content: bytes, mode: int) -> None:
    with open(location, "wb") as file:  # noqa: PTH123 - as above
        file.write(content)
        # Whatever the umask is: git keeps just this bit.
        os.fchmod(file.fileno(), mode)


def _do(root: str, step: Step, staged: str, folders: set[str]) -> None:
    location = f"{root}/{step.path}"
    match step:
        case Write():
            _make_folder_of(location, folders)
            # A link inside the project stays one: what it points to is replaced.
            os.replace(staged, os.path.realpath(location) if os.path.islink(location) else location)  # noqa: PTH105, PTH114
        case Move():
            _make_folder_of(location, folders)
            os.replace(f"{root}/{step.old_path}", location)  # noqa: PTH105 - as above
            _prune(root, step.old_path)
        case Remove():
            with suppress(FileNotFoundError):
                os.unlink(location)  # noqa: PTH108 - as above
            _prune(root, step.path)


def _make_folder_of(location: str, folders: set[str]) -> None:
    folder = os.path.dirname(location)  # noqa: PTH120 - as above
    if folder not in folders:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103 - as above
        folders.add(folder)


def _prune(root: str, path: str) -> None:
    folder = Path(root, path).parent
    while folder != Path(root) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


@contextmanager
def _errors_as(consequence: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"`{error.filename}`: {error.strerror}" if error.filename else str(error)
        raise TreeError(f"the project cannot be written: {what}", hint=consequence) from error
