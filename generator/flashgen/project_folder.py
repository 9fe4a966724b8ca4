"""Where a spec's project lies, and how paths in the spec read from there."""

import os
from pathlib import Path

from flashgen.errors import UsageError

RECORD_FOLDER = ".flashgen"


def locate_project(spec_path: Path, name: str, output: Path | None) -> Path:
    """The project's folder, absolute.

    The spec's own folder when that is a project already, or when `output` says so; otherwise `output`, by default a
    folder beside the spec called `name`. Raises `UsageError` for a folder that no project can lie in.
    """
    spec_folder = absolute(spec_path).parent
    if output is not None:
        folder = absolute(output)
    elif (spec_folder / RECORD_FOLDER).is_dir():
        folder = spec_folder
    else:
        folder = spec_folder / name
    _refuse_unfit(folder)
    return folder


def absolute(path: Path) -> Path:
    """Without `..`, symbolic links as they are: `../models` beside a linked folder stays beside the link."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - `Path.resolve` would follow links


def relative_path(path: Path, folder: Path) -> str:
    """`path` as it reads from `folder`, with "/"."""
    return Path(os.path.relpath(absolute(path), absolute(folder))).as_posix()


def _refuse_unfit(folder: Path) -> None:
    if folder == Path(folder.anchor) or folder == Path.home():
        raise UsageError(
            f"`{folder}` cannot become a project", hint="name a folder of its own: `flashgen build -o DIR`"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`{folder}` is a file, not a folder", hint="name another with `-o DIR`")
