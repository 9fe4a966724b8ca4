"""The build record in a project's `.flashgen/`: what the last build wrote. Committed, never edited.

- `base/<path>.base`: the text that flashgen wrote, so that a user's edits show; for binary files its SHA-256.
- `files.tsv`: a line per file with its id (which stays when its path changes), owner, mode and path.
- `lock.yaml`: what the build was made from, and which files the user deleted. No time stamps, no secrets.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, cast

from flashgen.build_plan import Owner
from flashgen.errors import TreeError
from flashgen.project_folder import RECORD_FOLDER
from flashgen.project_paths import path_problem

SCHEMA_VERSION = 1
FILES_PATH = f"{RECORD_FOLDER}/files.tsv"
LOCK_PATH = f"{RECORD_FOLDER}/lock.yaml"
IGNORE_PATH = f"{RECORD_FOLDER}/.gitignore"

# What a killed build leaves behind.
IGNORE_TEXT = "tmp/\n"

_LOCK_HEAD = "# What the last build was made from. Written by flashgen; commit it with the project.\n"


class RecordedFile(NamedTuple):
    """One file that flashgen wrote."""

    file_id: str
    owner: Owner
    mode: int
    path: str


class Lock(NamedTuple):
    """What a build was made from."""

    generator_version: str
    spec_path: str
    spec_sha256: str

    # Ids of files that the user deleted: a fresh checkout does not bring them back.
    deleted: frozenset[str] = frozenset()


class BuildRecord(NamedTuple):
    """The record as it lies on disk."""

    # By id.
    files: dict[str, RecordedFile]

    # `None` before the first build.
    lock: Lock | None


def base_form(content: bytes, *, is_binary: bool) -> bytes:
    """What the record keeps of a file's content, and what contents are compared by."""
    if is_binary:
        return f"sha256:{hashlib.sha256(content).hexdigest()}\n".encode()
    return content.replace(b"\r\n", b"\n")


def base_path(path: str) -> str:
    """Where the base of the file at `path` lies."""
    return f"{RECORD_FOLDER}/base/{path}.base"


def read_base(project_folder: Path, path: str) -> bytes | None:
    """The base of a file, or `None` when it is not there."""
    try:
        return base_form((project_folder / base_path(path)).read_bytes(), is_binary=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_record(project_folder: Path) -> BuildRecord:
    """The record of a project, empty where there is none; raises `TreeError` when it is damaged."""
    text = _read_text(project_folder / FILES_PATH) or ""
    # A line merged twice (`merge=union`) counts once: the last one wins.
    files = {file.file_id: file for file in map(_parse_line, text.splitlines())}
    return BuildRecord(files=files, lock=_read_lock(project_folder))


def files_text(files: list[RecordedFile]) -> str:
    """`files.tsv`."""
    lines = [f"{file.file_id}\t{file.owner}\t{file.mode:04o}\t{file.path}\n" for file in files]
    return "".join(sorted(lines))


def lock_text(lock: Lock) -> str:
    """`lock.yaml`."""
    from flashgen.quoting import yaml  # the fast path of a build that changes nothing does without

    lines = [
        f"generator_version: {yaml(lock.generator_version)}",
        f"schema_version: {SCHEMA_VERSION}",
        f"spec: {yaml(lock.spec_path)}",
        f"spec_sha256: {yaml(lock.spec_sha256)}",
        *([] if lock.deleted else ["deleted: []"]),
        *(["deleted:"] + [f"  - {yaml(file_id)}" for file_id in sorted(lock.deleted)] if lock.deleted else []),
    ]
    return _LOCK_HEAD + "".join(f"{line}\n" for line in lines)


def _parse_line(line: str) -> RecordedFile:
    parts = line.split("\t")
    if len(parts) != 4 or parts[1] not in {"managed", "once"} or parts[2] not in {"0644", "0755"}:
        raise _damaged(FILES_PATH, f"this line is no record of a file: `{line}`")
    file_id, owner, mode, path = parts
    # The record is an input like any other: it must not lead outside the project.
    if problem := path_problem(path):
        raise _damaged(FILES_PATH, f"`{path}` {problem}")
    return RecordedFile(file_id=file_id, owner=cast("Owner", owner), mode=int(mode, 8), path=path)


def _read_lock(project_folder: Path) -> Lock | None:
    import yaml  # as in `lock_text`

    text = _read_text(project_folder / LOCK_PATH)
    if text is None:
        return None
    try:
        tree: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return Lock(
            generator_version=str(tree["generator_version"]),
            spec_path=str(tree["spec"]),
            spec_sha256=str(tree["spec_sha256"]),
            deleted=frozenset(str(file_id) for file_id in tree["deleted"]),
        )
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise _damaged(LOCK_PATH, "its keys are not those that flashgen writes") from error


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise TreeError(f"`{path}` cannot be read: {error}") from error


def _damaged(path: str, problem: str) -> TreeError:
    return TreeError(
        f"`{path}` is damaged: {problem}",
        paths=[path],
        hint=f"bring back the committed one: `git checkout -- {RECORD_FOLDER}`",
    )
