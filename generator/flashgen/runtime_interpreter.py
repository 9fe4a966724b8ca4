"""Which Python runs the runtime: this one when it has it, else an environment of the project's or of flashgen's own."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flashgen.errors import UsageError
from flashgen.resolved import ResolvedProject
from flashgen.resources import data_dir
from flashgen.runtime_wheel import runtime_version, runtime_wheel

# What the extras `server` and `worker` bring; looked up, never imported: torch takes seconds.
_MODULES = ("fastapi", "uvicorn", "uvloop", "httptools", "torch", "transformers", "safetensors", "huggingface_hub")

# Written last, so that an interrupted installation is made again.
_MARK = ".flashgen-runtime"


def interpreter(project: ResolvedProject, folder: Path, say: Callable[[str], None]) -> str:
    """The path of a Python that can serve `project` in `folder`; makes `.venv` there on first use."""
    if installed_version() == project.runtime_version and all(map(_is_importable, _MODULES)):
        return sys.executable
    wheel = _Wheel(project.runtime_version, project.runtime_wheel, project.runtime_wheel_sha256)
    return str(_own_environment(wheel, folder, say))


def shared_interpreter(cache: Path, say: Callable[[str], None]) -> str:
    """The path of a Python that has the runtime of this flashgen, for commands without a project."""
    if installed_version() == runtime_version() and all(map(_is_importable, _MODULES)):
        return sys.executable
    folder = cache / "runtime"
    wheel = runtime_wheel()
    files = {f"vendor/{wheel.file_name}": wheel.content, "constraints.txt": _pins().encode()}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(_own_environment(_Wheel(wheel.version, wheel.file_name, wheel.sha256), folder, say))


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


class _Wheel(NamedTuple):
    """The runtime that an environment gets."""

    version: str
    file_name: str
    sha256: str


def _own_environment(wheel: _Wheel, folder: Path, say: Callable[[str], None]) -> Path:
    environment = folder / ".venv"
    python = environment / "bin" / "python"
    mark = environment / _MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == wheel.sha256 and python.exists():
        return python
    say(f"installing flashgen-runtime {wheel.version} with its dependencies into {environment} (once)")
    _execute([sys.executable, "-m", "venv", "--clear", str(environment)], folder)
    _execute(install_command(python, wheel.file_name), folder)
    mark.write_text(wheel.sha256, encoding="utf-8")
    return python


def install_command(python: Path, wheel: str) -> list[str]:
    """pip's command line, relative to the folder that has the wheel in `vendor`."""
    path = f"./vendor/{wheel}[server,worker]"
    return [str(python), "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", path]


def _pins() -> str:
    """What projects pin their dependencies to, without what only a project decides."""
    template = data_dir("blueprints") / "service" / "{{cookiecutter.name}}" / "constraints.txt.j2"
    lines = template.read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if "{" not in line)


def _execute(command: list[str], folder: Path) -> None:
    code = subprocess.run(command, cwd=folder, check=False).returncode
    if code:
        raise UsageError(
            f"`{' '.join(command)}` ended with {code}",
            hint="its output is above; a Python that has flashgen-runtime with its extras needs no installation",
        )
