from pathlib import Path

import pytest

from flashgen.errors import TreeError
from flashgen.record import (
    Lock,
    RecordedFile,
    base_form,
    files_text,
    lock_text,
    read_base,
    read_record,
)
from tests.compiler.hostile import HOSTILE

FILE = RecordedFile(file_id="main.py.j2#api", owner="managed", mode=0o644, path="api/main.py")


def write_record(folder: Path, files: str, lock: str | None = None) -> None:
    (folder / ".flashgen").mkdir()
    (folder / ".flashgen" / "files.tsv").write_text(files, encoding="utf-8")
    if lock is not None:
        (folder / ".flashgen" / "lock.yaml").write_text(lock, encoding="utf-8")


def test_a_record_is_read_back(tmp_path: Path) -> None:
    """List and lock."""
    lock = Lock(
        generator_version="0.1.0", spec_path="../flashgen.yaml", spec_sha256="0" * 64, deleted=frozenset({"x.j2"})
    )

    write_record(tmp_path, files_text([FILE]), lock_text(lock))

    record = read_record(tmp_path)
    assert record.files == {FILE.file_id: FILE}
    assert record.lock == lock


@pytest.mark.parametrize("text", [text for text in HOSTILE if text])
def test_a_spec_of_any_name_is_recorded(tmp_path: Path, text: str) -> None:
    """The path of a spec is the user's."""
    lock = Lock(generator_version="0.1.0", spec_path=text, spec_sha256="0" * 64)

    write_record(tmp_path, "", lock_text(lock))

    assert read_record(tmp_path).lock == lock


def test_no_record_is_an_empty_one(tmp_path: Path) -> None:
    """Before the first build."""
    record = read_record(tmp_path)

    assert (record.files, record.lock) == ({}, None)


def test_lines_that_git_merged_twice_count_once(tmp_path: Path) -> None:
    """`merge=union` keeps both sides; the last one wins."""
    write_record(tmp_path, files_text([FILE]) * 2)

    assert read_record(tmp_path).files == {FILE.file_id: FILE}


@pytest.mark.parametrize(
    "line",
    [
        "one column",
        "id\tmanaged\t0644",
        "id\tseed\t0644\tx",
        "id\tmanaged\t0777\tx",
        "id\tmanaged\t0644\t../../etc/passwd",
        "id\tmanaged\t0644\t/etc/passwd",
        "<<<<<<< HEAD",
    ],
)
def test_a_damaged_list_is_named(tmp_path: Path, line: str) -> None:
    """A record from elsewhere never leads outside the project."""
    write_record(tmp_path, f"{line}\n")

    with pytest.raises(TreeError, match=r"files\.tsv` is damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    "lock", ["", "- a\n", "generator_version: 1\n", "a: [\n", "generator_version: !!python/name:os\n"]
)
def test_a_damaged_lock_is_named(tmp_path: Path, lock: str) -> None:
    """Such as one with conflict markers."""
    write_record(tmp_path, "", lock)

    with pytest.raises(TreeError, match=r"lock\.yaml` is damaged"):
        read_record(tmp_path)


def test_bases_compare_without_regard_to_line_ends(tmp_path: Path) -> None:
    """Git may have checked them out with CRLF."""
    (tmp_path / ".flashgen" / "base").mkdir(parents=True)
    (tmp_path / ".flashgen" / "base" / "x.py.base").write_bytes(b"a\r\nb\r\n")

    assert read_base(tmp_path, "x.py") == b"a\nb\n"
    assert read_base(tmp_path, "y.py") is None
    assert base_form(b"a\r\n", is_binary=True) != base_form(b"a\n", is_binary=True)
