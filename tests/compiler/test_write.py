import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from flashgen.build_plan import Owner
from flashgen.errors import TreeError
from flashgen.rendered import RenderedFile, RenderedProject
from flashgen.stages.write import write
from flashgen.write_report import WriteReport


def file(path: str, text: str | bytes, *, owner: Owner = "managed", mode: int = 0o644, key: str = "") -> RenderedFile:
    is_binary = isinstance(text, bytes)
    content = text if isinstance(text, bytes) else text.encode()
    return RenderedFile(file_id=key or path, path=path, content=content, owner=owner, mode=mode, is_binary=is_binary)


def project(*files: RenderedFile) -> RenderedProject:
    return RenderedProject(files=files, generator_version="0.1.0", spec_sha256="0" * 64, spec_path="flashgen.yaml")


def build(folder: Path, *files: RenderedFile) -> list[tuple[str, str]]:
    return words(write(project(*files), folder))


def words(report: WriteReport) -> list[tuple[str, str]]:
    return [(change.word, change.path) for change in report.changes]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a project by path."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def edit(folder: Path, path: str, text: str) -> None:
    (folder / path).write_text(text, encoding="utf-8")


def test_a_first_build_creates_everything(tmp_path: Path) -> None:
    """Files, their bases, and the record's lists."""
    changes = build(tmp_path, file("a/x.py", "one\n"), file("run.sh", "two\n", mode=0o755))

    assert changes == [("create", "a/x.py"), ("create", "run.sh")]
    assert (tmp_path / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a" / "x.py").stat().st_mode & 0o777 == 0o644
    assert sorted(tree(tmp_path)) == [
        ".flashgen/.gitignore",
        ".flashgen/base/a/x.py.base",
        ".flashgen/base/run.sh.base",
        ".flashgen/files.tsv",
        ".flashgen/lock.yaml",
        "a/x.py",
        "run.sh",
    ]


def test_a_second_build_changes_nothing(tmp_path: Path) -> None:
    """Not a byte, and not a file's time."""
    build(tmp_path, file("x.py", "one\n"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    assert build(tmp_path, file("x.py", "one\n")) == []

    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# What was written last time, what the user made of it (`None`: deleted), what comes now; the word and the result.
STATES: list[tuple[str, str | None, str, str | None, str | None]] = [
    ("old\n", "old\n", "old\n", None, "old\n"),
    ("old\n", "old\n", "new\n", "update", "new\n"),
    ("old\n", "mine\n", "old\n", "keep", "mine\n"),
    ("old\n", "new\n", "new\n", "adopt", "new\n"),
    ("old\n", None, "old\n", "deleted", None),
    ("old\n", None, "new\n", "deleted", None),
    ("old\n", "old\r\n", "old\n", None, "old\r\n"),
    ("old\n", "old\r\n", "new\n", "update", "new\r\n"),
]


@pytest.mark.parametrize(("base", "disk", "new", "word", "after"), STATES)
def test_a_managed_file(
    tmp_path: Path, base: str, disk: str | None, new: str, word: str | None, after: str | None
) -> None:
    """The table of states; an edit is never overwritten."""
    other = file("other.py", "other\n")
    build(tmp_path, file("x.py", base), other)
    change(tmp_path / "x.py", disk)

    changes = build(tmp_path, file("x.py", new), other)

    assert changes == ([] if word is None else [(word, "x.py")])
    assert content(tmp_path / "x.py") == (after.encode() if after is not None else None)


@pytest.mark.parametrize("disk", ["old\n", "mine\n"])
def test_a_once_file_is_the_users(tmp_path: Path, disk: str) -> None:
    """Edited or not, what comes now does not touch it."""
    build(tmp_path, file("hooks.py", "old\n", owner="once"))
    change(tmp_path / "hooks.py", disk)

    assert build(tmp_path, file("hooks.py", "new\n", owner="once")) == []

    assert content(tmp_path / "hooks.py") == disk.encode()


def test_a_once_file_that_was_there_first_is_kept(tmp_path: Path) -> None:
    """The user wrote it before flashgen would have."""
    edit(tmp_path, "hooks.py", "mine\n")

    assert build(tmp_path, file("hooks.py", "new\n", owner="once")) == [("keep", "hooks.py")]
    assert build(tmp_path, file("hooks.py", "new\n", owner="once")) == []
    assert content(tmp_path / "hooks.py") == b"mine\n"


@pytest.mark.parametrize(
    ("disk", "word", "after"), [("old\n", "remove", None), ("mine\n", "orphan", b"mine\n"), (None, None, None)]
)
def test_a_file_that_is_no_longer_produced(
    tmp_path: Path, disk: str | None, word: str | None, after: bytes | None
) -> None:
    """Unedited it goes with the folders it leaves empty; edited it stays and is named once."""
    other = file("other.py", "other\n")
    build(tmp_path, file("a/b/x.py", "old\n"), other)
    change(tmp_path / "a" / "b" / "x.py", disk)

    changes = build(tmp_path, other)

    assert changes == ([] if word is None else [(word, "a/b/x.py")])
    assert content(tmp_path / "a" / "b" / "x.py") == after
    assert (tmp_path / "a").exists() == (word != "remove")
    assert not (tmp_path / ".flashgen" / "base" / "a").exists()
    assert build(tmp_path, other) == []


def test_a_file_that_was_there_with_the_same_text_is_adopted(tmp_path: Path) -> None:
    """Such as after a build that was killed before it wrote its record."""
    edit(tmp_path, "x.py", "same\n")

    assert build(tmp_path, file("x.py", "same\n")) == [("adopt", "x.py")]
    assert build(tmp_path, file("x.py", "same\n")) == []


def conflict_of_edits(folder: Path) -> None:
    build(folder, file("x.py", "old\n"), file("y.py", "old\n"), file("z.py", "old\n"))
    edit(folder, "x.py", "mine\n")
    edit(folder, "z.py", "mine\n")


def file_in_the_way(folder: Path) -> None:
    edit(folder, "x.py", "not flashgen's\n")
    edit(folder, "z.py", "not flashgen's\n")


@pytest.mark.parametrize("prepare", [conflict_of_edits, file_in_the_way])
@pytest.mark.parametrize("check", [False, True])
def test_a_conflict_stops_the_build_before_it_writes(
    tmp_path: Path, prepare: Callable[[Path], None], check: bool
) -> None:
    """It names every file that needs the user, and changes nothing at all."""
    prepare(tmp_path)
    before = tree(tmp_path)

    with pytest.raises(TreeError) as caught:
        write(project(*(file(f"{name}.py", "new\n") for name in "xyz")), tmp_path, check=check)

    assert caught.value.paths == ("x.py", "z.py")
    assert "x.py" in str(caught.value)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert tree(tmp_path) == before


def test_the_hint_for_a_conflict_works(tmp_path: Path) -> None:
    """Put the base back, build, and the build goes on."""
    conflict_of_edits(tmp_path)
    for name in ("x.py", "z.py"):
        edit(tmp_path, name, (tmp_path / f".flashgen/base/{name}.base").read_text(encoding="utf-8"))

    changes = build(tmp_path, *(file(f"{name}.py", "new\n") for name in "xyz"))

    assert changes == [("update", "x.py"), ("update", "y.py"), ("update", "z.py")]


def test_check_writes_nothing_and_says_what_would_change(tmp_path: Path) -> None:
    """Stale files are stale; what the user decided is not."""
    build(tmp_path, file("x.py", "old\n"), file("y.py", "old\n"), file("gone.py", "old\n"))
    edit(tmp_path, "y.py", "mine\n")
    before = tree(tmp_path)

    report = write(project(file("x.py", "new\n"), file("y.py", "old\n"), file("z.py", "new\n")), tmp_path, check=True)

    assert words(report) == [("remove", "gone.py"), ("update", "x.py"), ("keep", "y.py"), ("create", "z.py")]
    assert not report.is_current
    assert tree(tmp_path) == before


def test_an_edited_tree_is_current(tmp_path: Path) -> None:
    """An edit where nothing new came is the user's right."""
    build(tmp_path, file("x.py", "old\n"))
    edit(tmp_path, "x.py", "mine\n")

    assert write(project(file("x.py", "old\n")), tmp_path, check=True).is_current


def test_a_deleted_file_comes_back_only_into_a_fresh_checkout(tmp_path: Path) -> None:
    """Where all is missing nothing was deleted, except what the record knows as deleted."""
    files = [file("x.py", "x\n"), file("y.py", "y\n")]
    build(tmp_path, *files)
    (tmp_path / "x.py").unlink()
    assert build(tmp_path, *files) == [("deleted", "x.py")]
    (tmp_path / "y.py").unlink()

    assert build(tmp_path, *files) == [("deleted", "x.py"), ("create", "y.py")]


def test_a_file_whose_path_changes_is_moved_with_its_edits(tmp_path: Path) -> None:
    """The id says that it is the same file."""
    build(tmp_path, file("old/x.py", "text\n", key="x"), file("old/y.py", "text\n", key="y"))
    edit(tmp_path, "old/x.py", "mine\n")

    changes = build(tmp_path, file("new/x.py", "text\n", key="x"), file("new/y.py", "other\n", key="y"))

    assert changes == [("move", "new/x.py"), ("move", "new/y.py")]
    assert content(tmp_path / "new" / "x.py") == b"mine\n"
    assert content(tmp_path / "new" / "y.py") == b"other\n"
    assert not (tmp_path / "old").exists()
    assert build(tmp_path, file("new/x.py", "text\n", key="x"), file("new/y.py", "other\n", key="y")) == [
        ("keep", "new/x.py")
    ]


def test_a_binary_file_is_compared_by_its_hash(tmp_path: Path) -> None:
    """The record holds no copy of a wheel."""
    build(tmp_path, file("x.whl", b"\r\n\0one"))
    base = content(tmp_path / ".flashgen" / "base" / "x.whl.base")

    assert base is not None
    assert base.startswith(b"sha256:")
    assert build(tmp_path, file("x.whl", b"\r\n\0one")) == []
    assert build(tmp_path, file("x.whl", b"\n\0one")) == [("update", "x.whl")]
    assert build(tmp_path) == [("remove", "x.whl")]


def test_a_new_mode_is_an_update(tmp_path: Path) -> None:
    """A script that becomes executable."""
    build(tmp_path, file("run.sh", "x\n"))

    assert build(tmp_path, file("run.sh", "x\n", mode=0o755)) == [("update", "run.sh")]
    assert (tmp_path / "run.sh").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("number_of_renames", range(18))
def test_a_build_that_is_killed_is_healed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number_of_renames: int
) -> None:
    """Whenever it stops, building again gives the wanted tree, without a conflict and without a lost file."""
    old = [file("a.py", "old\n"), file("b.py", "old\n"), file("gone.py", "old\n"), file("m.py", "m\n", key="m")]
    new = [file("a.py", "new\n"), file("b.py", "new\n"), file("c.py", "new\n"), file("moved.py", "m2\n", key="m")]
    build(tmp_path, *old)
    stop_after(monkeypatch, number_of_renames)
    with suppress(Killed):
        build(tmp_path, *new)
    monkeypatch.undo()

    build(tmp_path, *new)

    wanted = {"a.py": b"new\n", "b.py": b"new\n", "c.py": b"new\n", "moved.py": b"m2\n"}
    assert {path: text for path, text in tree(tmp_path).items() if not path.startswith(".flashgen")} == wanted
    assert build(tmp_path, *new) == []


class Killed(BaseException):
    """What no handler catches, as SIGKILL."""


def stop_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ends the process' work after so many renames and removals."""
    left = iter(range(number))

    def counted(do: Callable[..., object]) -> Callable[..., object]:
        def do_or_die(*arguments: object, **options: object) -> object:
            if next(left, None) is None:
                raise Killed
            return do(*arguments, **options)

        return do_or_die

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(os, "unlink", counted(os.unlink))


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """Everything is written aside first; a limit on the size of files stands for the disk."""
    build(tmp_path, file("a.py", "old\n"), file("b.py", "old\n"))
    before = tree(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(TreeError, match="File too large") as caught:
            build(tmp_path, file("a.py", "new\n"), file("b.py", "new\n" * 5_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert caught.value.hint == "nothing was changed"
    assert tree(tmp_path) == before


def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before the first rename."""
    build(tmp_path, file("a/x.py", "old\n"), file("b/y.py", "old\n"))
    before = tree(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "b")

    with pytest.raises(TreeError, match=r"b`: permission denied"):
        build(tmp_path, file("a/x.py", "new\n"), file("b/y.py", "new\n"))

    assert tree(tmp_path) == before


@pytest.mark.parametrize("target", ["outside", "outside/x.py"])
def test_a_link_out_of_the_project_is_refused(tmp_path: Path, target: str) -> None:
    """Neither a folder nor a file of the project may lead elsewhere."""
    folder, outside = tmp_path / "project", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "x.py").write_text("theirs\n", encoding="utf-8")
    if target == "outside":
        (folder / "a").symlink_to(outside)
    else:
        (folder / "a").mkdir()
        (folder / "a" / "x.py").symlink_to(tmp_path / target)

    with pytest.raises(TreeError, match="symbolic link"):
        build(folder, file("a/x.py", "new\n"))

    assert content(outside / "x.py") == b"theirs\n"


def test_a_link_inside_the_project_is_followed(tmp_path: Path) -> None:
    """It stays a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to("real")

    assert build(tmp_path, file("a/x.py", "new\n")) == [("create", "a/x.py")]

    assert content(tmp_path / "real" / "x.py") == b"new\n"


@pytest.mark.parametrize("path", ["a", "a/x.py"])
def test_a_folder_or_file_in_the_way_is_named(tmp_path: Path, path: str) -> None:
    """A folder where a file goes, or a file where a folder goes."""
    if path == "a":
        (tmp_path / "a").mkdir()
    else:
        edit(tmp_path, "a", "a file\n")

    with pytest.raises(TreeError, match="in the way"):
        build(tmp_path, file(path, "new\n"))


def change(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text.encode())


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
