"""Remembers builds, so that one that changes nothing takes no time. Kept in the user's cache, never in a project.

What is remembered counts only while everything that a build reads is the same: the spec by content, flashgen's own
files and a model's configuration by size and time, the project's files by content.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flashgen.project_folder import absolute
from flashgen.resources import data_dir
from flashgen.user_cache import cache_folder
from flashgen.write_report import FileChange, WriteReport

# What `resolve` looks at in the folder of a local model, and the folder itself: its time changes with its entries.
_CHECKPOINT_FILES = (
    *(".", "config.json", "tokenizer.json", "tokenizer_config.json"),
    *("chat_template.jinja", "chat_template.json"),
)
_RECORD_FILES = (".flashgen/files.tsv", ".flashgen/lock.yaml")


class LastBuild(NamedTuple):
    """A build that left its project as the spec asks for."""

    folder: Path
    report: WriteReport
    notices: tuple[str, ...]


def recall(spec_path: Path, output: Path | None) -> LastBuild | None:
    """The last build of this spec, if another one would change nothing."""
    place = _place(spec_path, output)
    try:
        remembered: dict[str, Any] = json.loads(place.read_bytes()) if place is not None else {}
        if not remembered or remembered["inputs"] != _inputs(spec_path, remembered["checkpoints"]):
            return None
        folder = Path(remembered["folder"])
        if remembered["files"] != _digests(folder, remembered["files"]):
            return None
        changes = tuple(FileChange(word, path, note) for word, path, note in remembered["changes"])
        return LastBuild(folder=folder, report=WriteReport(changes), notices=tuple(remembered["notices"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Whatever is wrong with the cache, a build does without it.
        return None


def remember(
    last: LastBuild, spec_path: Path, output: Path | None, *, paths: list[str], checkpoints: list[Path]
) -> None:
    """Keeps a build whose project now is as it should be.

    Args:
        paths: of all files that the build produces, relative to the project.
        checkpoints: folders of local models.
    """
    place = _place(spec_path, output)
    if place is None:
        return
    folders = [str(folder) for folder in checkpoints]
    remembered = {
        "inputs": _inputs(spec_path, folders),
        "checkpoints": folders,
        "folder": str(last.folder),
        "files": _digests(last.folder, [*paths, *_RECORD_FILES]),
        # What was written is done; what is the user's own is said again each time.
        "changes": [[change.word, change.path, change.note] for change in last.report.changes if _is_lasting(change)],
        "notices": last.notices,
    }
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = place.with_suffix(f".{os.getpid()}")
        staged.write_text(json.dumps(remembered), encoding="utf-8")
        staged.replace(place)
    except OSError:
        return


def _is_lasting(change: FileChange) -> bool:
    return change.word in {"keep", "deleted"}


def _place(spec_path: Path, output: Path | None) -> Path | None:
    folder = cache_folder()
    key = json.dumps([str(absolute(spec_path)), str(absolute(output)) if output is not None else None])
    return folder / "builds" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json" if folder is not None else None


def _inputs(spec_path: Path, checkpoints: list[str]) -> str:
    digest = hashlib.sha256(spec_path.read_bytes())
    for line in (*_own_files(), *_checkpoint_files(checkpoints)):
        digest.update(line.encode())
    # With and without this folder the project lies elsewhere.
    digest.update(str((absolute(spec_path).parent / ".flashgen").is_dir()).encode())
    return digest.hexdigest()


def _own_files() -> Iterator[str]:
    for folder in (Path(__file__).parent, data_dir("blueprints"), data_dir("schemas"), data_dir("runtime")):
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(files):
                yield _stamp(f"{place}/{name}")


def _checkpoint_files(folders: list[str]) -> Iterator[str]:
    return (_stamp(f"{folder}/{name}") for folder in folders for name in _CHECKPOINT_FILES)


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - hundreds of files
    except OSError:
        return f"{path}\n-\n"
    return f"{path}\n{status.st_mtime_ns} {status.st_size}\n"


def _digests(folder: Path, paths: Any) -> dict[str, str | None]:
    return {path: _digest(folder / path) for path in paths}


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None
