"""Which Python runs a project: this one when it has the runtime, else the project's own `.venv`."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from flashgen.errors import UsageError
from flashgen.resolved import ResolvedProject

# What the extras `server` and `worker` bring; looked up, never imported: torch takes seconds.
_MODULES = ("fastapi", "uvicorn", "uvloop", "httptools", "torch", "transformers", "safetensors", "huggingface_hub")

# Written last, so that an interrupted installation is made again.
_MARK = ".flashgen-runtime"


def interpreter(project: ResolvedProject, folder: Path, say: Callable[[str], None]) -> str:
    """The path of a Python that can serve `project` in `folder`; makes `.venv` there on first use."""
    if installed_version() == project.runtime_version and all(map(_is_importable, _MODULES)):
        return sys.executable
    return str(_own_environment(project, folder, say))


def installed_version() -> str | None:
    """The version of the runtime beside this flashgen, read from its source."""
    found = importlib.util.find_spec("flashgen_runtime")
    if found is None or found.origin is None:
        return None
    for line in Path(found.origin).read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__ = "):
            return line.split('"')[1]
    return None


def _is_importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _own_environment(project: ResolvedProject, folder: Path, say: Callable[[str], None]) -> Path:
    environment = folder / ".venv"
    python = environment / "bin" / "python"
    mark = environment / _MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == project.runtime_wheel_sha256 and python.exists():
        return python
    say(f"installing flashgen-runtime {project.runtime_version} with its dependencies into {environment} (once)")
    _execute([sys.executable, "-m", "venv", "--clear", str(environment)], folder)
    _execute(install_command(python, project), folder)
    mark.write_text(project.runtime_wheel_sha256, encoding="utf-8")
    return python


def install_command(python: Path, project: ResolvedProject) -> list[str]:
    """pip's command line, relative to the project's folder."""
    wheel = f"vendor/{project.runtime_wheel}[server,worker]"
    return [str(python), "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", f"./{wheel}"]


def _execute(command: list[str], folder: Path) -> None:
    code = subprocess.run(command, cwd=folder, check=False).returncode
    if code:
        raise UsageError(
            f"`{' '.join(command)}` ended with {code}",
            hint="its output is above; a Python that has flashgen-runtime with its extras needs no installation",
        )
