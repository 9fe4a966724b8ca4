"""Hop 7: brings a project's folder to what was rendered, or with `check` says what that would change.

Everything is decided before anything is written. Per file `reconcile` decides, `project_tree` reads and writes,
`record` keeps what was written. A file is written before its base, and the record's list and lock come last: the
other order would make an interrupted build look like a user's edit.
"""

from pathlib import Path
from typing import NamedTuple

from flashgen.errors import TreeError
from flashgen.project_tree import Move, Remove, Step, Write, apply, read_files
from flashgen.reconcile import Decision, Found, decide, decide_gone
from flashgen.record import (
    FILES_PATH,
    IGNORE_PATH,
    IGNORE_TEXT,
    LOCK_PATH,
    BuildRecord,
    Lock,
    RecordedFile,
    base_form,
    base_path,
    files_text,
    lock_text,
    read_base,
    read_record,
)
from flashgen.rendered import RenderedFile, RenderedProject
from flashgen.write_report import WriteReport

# By path, before anything is written; `None` where there is no file.
Contents = dict[str, bytes | None]


class _Outcome(NamedTuple):
    """A decision with what it is about; `new` is `None` for a file that is no longer produced."""

    decision: Decision
    new: RenderedFile | None
    found: Found


def write(rendered: RenderedProject, project_folder: Path, *, check: bool = False) -> WriteReport:
    """Writes what differs and reports it; raises `TreeError` before the first write where the user must decide."""
    record = read_record(project_folder)
    paths = {file.path for file in rendered.files} | {file.path for file in record.files.values()}
    contents = read_files(project_folder, [*paths, FILES_PATH, LOCK_PATH, IGNORE_PATH])
    outcomes = _decide_all(rendered, project_folder, record, contents)
    _refuse_conflicts(outcomes)
    if not check:
        apply(project_folder, _steps(outcomes, rendered, contents))
    changes = [outcome.decision.change for outcome in outcomes]
    return WriteReport(tuple(sorted((change for change in changes if change), key=lambda change: change.path)))


def _decide_all(
    rendered: RenderedProject, project_folder: Path, record: BuildRecord, contents: Contents
) -> list[_Outcome]:
    produced = {file.file_id: file for file in rendered.files}
    gone = [file for file_id, file in record.files.items() if file_id not in produced]
    is_fresh = _is_fresh(record, contents)
    outcomes = []
    for new in rendered.files:
        found = _found(new, record, contents, project_folder, is_fresh=is_fresh)
        outcomes.append(_Outcome(decide(new, found), new, found))
    for recorded in gone:
        base = read_base(project_folder, recorded.path)
        found = Found(recorded=recorded, base=base, disk=_disk_form(contents[recorded.path], base))
        decision = decide_gone(found, recorded)
        # Another file took the path over: it is neither removed nor an orphan.
        if recorded.path not in {file.path for file in rendered.files}:
            outcomes.append(_Outcome(decision, None, found))
    return outcomes


def _is_fresh(record: BuildRecord, contents: Contents) -> bool:
    """Whether only the record is here: a checkout without the generated files, not a deletion of them all."""
    return all(contents[file.path] is None for file in record.files.values() if file.owner == "managed")


def _found(
    new: RenderedFile,
    record: BuildRecord,
    contents: Contents,
    project_folder: Path,
    *,
    is_fresh: bool,
) -> Found:
    recorded = record.files.get(new.file_id)
    was_deleted = record.lock is not None and new.file_id in record.lock.deleted
    path = recorded.path if recorded is not None else new.path
    return Found(
        recorded=recorded,
        base=read_base(project_folder, path) if recorded is not None else None,
        disk=_form_like(new, contents[path]),
        disk_at_new_path=_form_like(new, contents[new.path]) if path != new.path else None,
        is_deleted=was_deleted or not is_fresh,
    )


def _form_like(new: RenderedFile, content: bytes | None) -> bytes | None:
    return base_form(content, is_binary=new.is_binary) if content is not None else None


def _disk_form(content: bytes | None, base: bytes | None) -> bytes | None:
    """In the form of its base: nobody else knows whether a file that is no longer produced was binary."""
    if content is None:
        return None
    return base_form(content, is_binary=base is not None and base.startswith(b"sha256:"))


def _refuse_conflicts(outcomes: list[_Outcome]) -> None:
    conflicts = [outcome.decision for outcome in outcomes if outcome.decision.conflict]
    if not conflicts:
        return
    width = max(len(decision.path) for decision in conflicts)
    lines = [f"  conflict  {decision.path:{width}}  {decision.conflict}" for decision in conflicts]
    count = f"{len(conflicts)} files need" if len(conflicts) > 1 else "1 file needs"
    raise TreeError(
        "\n".join([f"nothing was written: {count} you", *lines]),
        paths=[decision.path for decision in conflicts],
        hint="an edited file: keep a copy, put `.flashgen/base/<path>.base` in its place, build, and bring your lines "
        "back;\na file in the way: move or delete it, and build again",
    )


def _steps(outcomes: list[_Outcome], rendered: RenderedProject, contents: Contents) -> list[Step]:
    steps: list[Step] = []
    for outcome in outcomes:
        steps += _file_steps(outcome, contents)
    for path, text in _record_texts(outcomes, rendered).items():
        content = text.encode()
        if contents[path] != content:
            steps.append(Write(path, content))
    return steps


def _file_steps(outcome: _Outcome, contents: Contents) -> list[Step]:
    """The file first, then its base."""
    decision, found = outcome.decision, outcome.found
    steps: list[Step] = []
    if decision.writes and outcome.new is not None:
        steps.append(_write_step(outcome.new, contents))
    if decision.old_path is not None:
        stays = decision.writes or decision.word == "adopt"
        steps.append(Remove(decision.old_path) if stays else Move(decision.old_path, decision.path))
    if decision.removes:
        steps.append(Remove(decision.path))
    return steps + _base_steps(outcome, found)


def _base_steps(outcome: _Outcome, found: Found) -> list[Step]:
    decision, new = outcome.decision, outcome.new
    old_path = found.recorded.path if found.recorded is not None else None
    if new is None or not decision.stays_recorded:
        return [Remove(base_path(old_path))] if old_path is not None and found.base is not None else []
    base = base_form(new.content, is_binary=new.is_binary) if decision.new_base else found.base
    steps: list[Step] = []
    if base is not None and (base != found.base or old_path != new.path):
        steps.append(Write(base_path(new.path), base))
    if old_path is not None and old_path != new.path and found.base is not None:
        steps.append(Remove(base_path(old_path)))
    return steps


def _write_step(new: RenderedFile, contents: Contents) -> Write:
    """Keeps the line ends of the copy that it replaces."""
    old = contents[new.path]
    has_crlf = not new.is_binary and old is not None and b"\r\n" in old
    return Write(new.path, new.content.replace(b"\n", b"\r\n") if has_crlf else new.content, new.mode)


def _record_texts(outcomes: list[_Outcome], rendered: RenderedProject) -> dict[str, str]:
    kept = [(outcome, outcome.new) for outcome in outcomes if outcome.new is not None]
    files = [
        RecordedFile(file_id=new.file_id, owner=new.owner, mode=new.mode, path=new.path)
        for outcome, new in kept
        if outcome.decision.stays_recorded
    ]
    lock = Lock(
        generator_version=rendered.generator_version,
        spec_path=rendered.spec_path,
        spec_sha256=rendered.spec_sha256,
        deleted=frozenset(new.file_id for outcome, new in kept if outcome.decision.word == "deleted"),
    )
    return {IGNORE_PATH: IGNORE_TEXT, FILES_PATH: files_text(files), LOCK_PATH: lock_text(lock)}
