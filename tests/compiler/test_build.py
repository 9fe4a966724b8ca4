import filecmp
import shutil
from pathlib import Path

import pytest
import yaml

from flashgen import cli
from tests.compiler.command_line import flashgen
from tests.compiler.hostile import HOSTILE
from tests.compiler.projects import CHAT_SPEC, write_checkpoint

EXACT_MODES = {0o644, 0o755}


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    (tmp_path / "chat.yaml").write_text(CHAT_SPEC, encoding="utf-8")


def build(*arguments: str) -> int:
    return cli.main(["build", *arguments])


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_build_reports_words_and_paths_and_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    """Notices go to stderr."""
    assert build("chat.yaml") == 0

    captured = capsys.readouterr()
    assert "create   api/main.py\n" in captured.out
    assert "\nnext, as README.md explains:\n  cd chat\n" in captured.out
    assert captured.err.startswith("note: whether `owner/some-model` has a chat template")


def test_a_second_build_says_that_nothing_changed(capsys: pytest.CaptureFixture[str]) -> None:
    """And its notices again."""
    build("chat.yaml")
    first = capsys.readouterr()

    assert build("chat.yaml") == 0

    second = capsys.readouterr()
    assert second.out == "nothing changed: chat is what the spec asks for\n"
    assert second.err == first.err


def test_a_build_that_changes_nothing_needs_no_renderer(tmp_path: Path) -> None:
    """It is remembered: no YAML is read, nothing is rendered."""
    flashgen("build", "chat.yaml", folder=tmp_path)

    done = flashgen("build", "chat.yaml", folder=tmp_path, PYTHONPROFILEIMPORTTIME="1")

    assert done.stdout == "nothing changed: chat is what the spec asks for\n"
    assert "flashgen.last_build" in done.stderr
    assert "jinja2" not in done.stderr
    assert "yaml" not in done.stderr.replace("chat.yaml", "")


@pytest.mark.parametrize("what", ["edit", "delete", "spec", "output"])
def test_what_is_remembered_counts_only_while_all_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """A file, the record or the spec changes: the build runs."""
    build("chat.yaml")
    capsys.readouterr()
    if what == "edit":
        (tmp_path / "chat" / "README.md").write_text("mine\n", encoding="utf-8")
    elif what == "delete":
        (tmp_path / "chat" / "README.md").unlink()
    elif what == "spec":
        (tmp_path / "chat.yaml").write_text(CHAT_SPEC.replace("some-model", "other"), encoding="utf-8")

    build("chat.yaml", *(["-o", "elsewhere"] if what == "output" else []))

    word = {"edit": "keep", "delete": "deleted", "spec": "update", "output": "create"}[what]
    assert f"{word:8} README.md" in capsys.readouterr().out


def test_edits_are_named_in_every_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also in one that is remembered."""
    build("chat.yaml")
    (tmp_path / "chat" / "README.md").write_text("mine\n", encoding="utf-8")
    build("chat.yaml")
    capsys.readouterr()

    assert build("chat.yaml") == 0

    assert capsys.readouterr().out.splitlines() == [
        "keep     README.md  edited",
        "nothing changed: chat is what the spec asks for",
    ]


@pytest.mark.parametrize("where", ["beside", "output", "init"])
def test_the_project_lies_where_the_spec_says(tmp_path: Path, where: str) -> None:
    """Beside the spec under its name, where `-o` points, or in the spec's own folder when that is a project."""
    arguments, folder = ["chat.yaml"], "chat"
    if where == "output":
        arguments, folder = ["chat.yaml", "-o", "deep/er"], "deep/er"
    elif where == "init":
        cli.main(["init", "mine"])
        arguments, folder = ["mine/flashgen.yaml"], "mine"

    assert build(*arguments) == 0

    assert (tmp_path / folder / "api" / "main.py").is_file()
    lock = (tmp_path / folder / ".flashgen" / "lock.yaml").read_text(encoding="utf-8")
    spec = {"beside": '"../chat.yaml"', "output": '"../../chat.yaml"', "init": "flashgen.yaml"}[where]
    assert f"\nspec: {spec}\n" in lock


def test_check_says_what_is_stale_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3 and the names; 0 when all is current."""
    assert build("chat.yaml", "--check") == 3
    assert "create   api/main.py" in capsys.readouterr().out
    assert not (tmp_path / "chat").exists()
    build("chat.yaml")
    assert build("chat.yaml", "--check") == 0
    (tmp_path / "chat.yaml").write_text(CHAT_SPEC.replace("some-model", "other-model"), encoding="utf-8")
    capsys.readouterr()

    assert build("chat.yaml", "--check") == 3

    out = capsys.readouterr().out
    assert "update   config/service.yaml" in out
    assert "chat is not what the spec asks for" in out


def test_a_comment_in_the_spec_makes_nothing_stale(tmp_path: Path) -> None:
    """What the spec says is the same."""
    build("chat.yaml")
    (tmp_path / "chat.yaml").write_text(f"# a comment\n{CHAT_SPEC}", encoding="utf-8")

    assert build("chat.yaml", "--check") == 0


def test_a_conflict_is_shown_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3 with the files, before anything happens."""
    build("chat.yaml")
    service = tmp_path / "chat" / "config" / "service.yaml"
    service.write_text("mine\n", encoding="utf-8")
    before = {path: (tmp_path / "chat" / path).read_bytes() for path in files_of(tmp_path / "chat")}
    (tmp_path / "chat.yaml").write_text(CHAT_SPEC.replace("some-model", "other-model"), encoding="utf-8")

    assert build("chat.yaml") == 3

    assert "conflict  config/service.yaml  edited" in capsys.readouterr().err
    assert {path: (tmp_path / "chat" / path).read_bytes() for path in files_of(tmp_path / "chat")} == before


def test_the_output_is_the_same_everywhere(tmp_path: Path) -> None:
    """Another folder, hash seed, locale, time zone and umask: not a byte differs, and no path of this machine shows."""
    write_checkpoint(tmp_path / "weights" / "coder")
    trees = []
    for index, environ in enumerate(
        [{"PYTHONHASHSEED": "1", "LC_ALL": "C"}, {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"}]
    ):
        place = tmp_path / f"place{index}"
        place.mkdir()
        shutil.copytree(tmp_path / "weights", place / "weights")
        spec = CHAT_SPEC.replace("owner/some-model", "./weights/coder")
        (place / "chat.yaml").write_text(spec, encoding="utf-8")
        done = flashgen("build", "chat.yaml", folder=place, **environ)
        assert done.returncode == 0, done.stderr
        trees.append(place / "chat")

    names = files_of(trees[0])
    assert names == files_of(trees[1])
    assert filecmp.cmpfiles(trees[0], trees[1], names, shallow=False)[1:] == ([], [])
    assert not [name for name in names if str(tmp_path).encode() in (trees[0] / name).read_bytes()]
    assert {
        (trees[0] / name).stat().st_mode & 0o777 for name in names if not name.startswith(".flashgen")
    } <= EXACT_MODES


@pytest.mark.parametrize("output", ["/", "~"])
def test_folders_that_are_no_project_are_refused(output: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody wants a project in the root of the disk or all over the home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert build("chat.yaml", "-o", output.replace("~", str(tmp_path / "home"))) == 2


def test_a_file_in_the_way_is_a_conflict(tmp_path: Path) -> None:
    """A folder with a README of its own keeps it."""
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "README.md").write_text("mine\n", encoding="utf-8")

    assert build("chat.yaml") == 3

    assert files_of(tmp_path / "chat") == ["README.md"]


def test_hostile_descriptions_build(tmp_path: Path) -> None:
    """Whatever users write, the project's Python still compiles and its YAML still parses."""
    texts = [text for text in HOSTILE if text.isprintable() and text.strip()]
    apis = "".join(
        f"  - path: /t{index}/v1/completions\n    description: {single_quoted(text)}\n"
        for index, text in enumerate(texts)
    )
    spec = f"description: {single_quoted(' '.join(texts))}\n" + CHAT_SPEC.replace("apis:\n", f"apis:\n{apis}")
    (tmp_path / "chat.yaml").write_text(spec, encoding="utf-8")

    assert build("chat.yaml") == 0

    for path in (tmp_path / "chat").rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), path, "exec")
    for path in (tmp_path / "chat").rglob("*.yaml"):
        list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def single_quoted(text: str) -> str:
    """YAML's form without escapes."""
    return "'" + text.replace("'", "''") + "'"
