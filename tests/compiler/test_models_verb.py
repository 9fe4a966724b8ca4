"""`flashgen models` becomes the runtime's command."""

import json
import sys
from pathlib import Path

import pytest

from flashgen import runtime_interpreter
from flashgen.runtime_interpreter import shared_interpreter
from flashgen.runtime_wheel import runtime_wheel
from tests.compiler.command_line import flashgen


def test_results_go_to_stdout_and_the_exit_code_is_the_runtimes(tmp_path: Path) -> None:
    """JSON can be piped, and a model that is not there is bad usage."""
    listed = flashgen("models", "list", "--json", folder=tmp_path)
    missing = flashgen("models", "info", "owner/name", folder=tmp_path)

    assert (listed.returncode, json.loads(listed.stdout), listed.stderr) == (0, [], "")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "owner/name" in missing.stderr


def test_arguments_are_the_runtimes_own(tmp_path: Path) -> None:
    """`--help` and mistakes speak of `flashgen models`, as it was typed."""
    helped = flashgen("models", "--help", folder=tmp_path)
    wrong = flashgen("models", "pull", "--revison=x", "y", folder=tmp_path)

    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith("usage: flashgen models")
    assert wrong.returncode == 2
    assert "usage: flashgen models" in wrong.stderr


def test_without_the_runtime_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets this flashgen's wheel and the pins of its projects; nothing is installed beside flashgen."""
    executed: list[list[str]] = []
    python = tmp_path / "runtime" / ".venv" / "bin" / "python"

    def execute(command: list[str], _: Path) -> None:
        executed.append(command)
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()

    monkeypatch.setattr(runtime_interpreter, "installed_version", lambda: None)
    monkeypatch.setattr(runtime_interpreter, "_execute", execute)

    first = shared_interpreter(tmp_path, lambda _: None)
    second = shared_interpreter(tmp_path, lambda _: None)

    assert first == second == str(python)
    assert len(executed) == 2
    assert executed[-1][-1] == f"./vendor/{runtime_wheel().file_name}[server,worker]"
    pins = (tmp_path / "runtime" / "constraints.txt").read_text(encoding="utf-8")
    assert "\ntorch==" in pins
    assert "{" not in pins


def test_the_python_that_has_the_runtime_is_taken(tmp_path: Path) -> None:
    """Nothing is installed where everything is."""
    assert shared_interpreter(tmp_path, lambda _: None) == sys.executable
