import subprocess
import sys
from pathlib import Path

import pytest

from flashgen import __version__, cli
from tests.compiler.command_line import flashgen


def test_no_arguments_show_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """A newcomer types the name alone."""
    assert cli.main([]) == 0

    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in ("init", "validate", "build", "run", "models"))


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """For bug reports."""
    assert cli.main(["--version"]) == 0

    assert capsys.readouterr().out == f"flashgen {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["biuld"], "did you mean `build`?"),
        (["xyzzy"], "the commands are `init`, `validate`, `build`, `run`, `models`"),
    ],
)
def test_an_unknown_command_is_bad_usage(argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the nearest one, or all of them."""
    assert cli.main(argv) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert hint in captured.err


@pytest.mark.parametrize("argv", [["build", "--unknown"], ["build", "a", "b"], ["--unknown"], ["run", "--port", "x"]])
def test_bad_arguments_are_bad_usage(argv: list[str]) -> None:
    """Exit code 2, as argparse has it."""
    assert cli.main(argv) == 2


def test_a_missing_spec_is_bad_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how to make one."""
    monkeypatch.chdir(tmp_path)

    assert cli.main(["validate"]) == 2

    assert (
        capsys.readouterr().err == "error: no such file: `flashgen.yaml`\n\nhint: `flashgen init` writes a first spec\n"
    )


def test_a_wrong_spec_is_shown_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1."""
    spec = tmp_path / "flashgen.yaml"
    spec.write_text("apis: []\nserverz: []\n", encoding="utf-8")

    assert cli.main(["validate", str(spec)]) == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error[FG" in captured.err


def test_what_nobody_expected_is_our_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 4, one line, and the way to the traceback."""
    monkeypatch.setattr(cli, "_run_command", raise_key_error)
    monkeypatch.delenv("FLASHGEN_TRACEBACK", raising=False)

    assert cli.main(["build"]) == 4

    assert capsys.readouterr().err == (
        "error: flashgen failed: KeyError: 'x'\n\n"
        "hint: this is our fault, not your spec's; `FLASHGEN_TRACEBACK=1` in front shows where\n"
    )
    monkeypatch.setenv("FLASHGEN_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli.main(["build"])


def raise_key_error(*_: object) -> None:
    raise KeyError("x")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """`flashgen | true` prints no traceback."""
    process = subprocess.run(
        f"'{sys.executable}' -m flashgen --help | true", shell=True, capture_output=True, cwd=tmp_path, check=False
    )

    assert process.stderr == b""


def test_help_imports_nothing_that_takes_time() -> None:
    """Start-up is what users feel: no YAML, no Jinja, not even dataclasses."""
    program = "import sys; from flashgen.cli import main; main([]); print(*sorted(sys.modules), file=sys.stderr)"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr.split()

    assert not {"yaml", "jinja2", "cookiecutter", "jsonschema", "dataclasses", "json", "flashgen.errors"} & set(loaded)


def test_the_module_runs_as_the_script_does(tmp_path: Path) -> None:
    """`python -m flashgen`."""
    done = flashgen("--version", folder=tmp_path)

    assert (done.returncode, done.stdout) == (0, f"flashgen {__version__}\n")
