"""Writes the runtime's wheel from its sources, with the standard library: the same bytes on every machine.

Nothing is compressed, because compressors differ between machines and git compresses by itself; time stamps and modes
are fixed and the order is sorted.
"""

import base64
import hashlib
import io
import tomllib
import zipfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from flashgen.resources import data_dir

_PACKAGE = "flashgen_runtime"

# The earliest time that a ZIP archive can hold.
_TIME_STAMP = (1980, 1, 1, 0, 0, 0)
_WHEEL_TEXT = "Wheel-Version: 1.0\nGenerator: flashgen\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


class RuntimeWheel(NamedTuple):
    """The wheel that a project carries in `vendor/`."""

    version: str
    file_name: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal digest, as pip's `--hash` wants it."""
        return hashlib.sha256(self.content).hexdigest()


@cache
def runtime_wheel() -> RuntimeWheel:
    """The wheel of the runtime that ships with this flashgen."""
    return write_wheel(data_dir("runtime"))


def runtime_version() -> str:
    """The version of the runtime that ships with this flashgen."""
    return _read_version(data_dir("runtime"))


def write_wheel(sources: Path) -> RuntimeWheel:
    """Packs `sources`: a folder with `pyproject.toml`, `README.md` and the package."""
    version = _read_version(sources)
    information = f"{_PACKAGE}-{version}.dist-info"
    files = {path.relative_to(sources).as_posix(): path.read_bytes() for path in source_files(sources)}
    files[f"{information}/METADATA"] = _metadata(sources, version).encode()
    files[f"{information}/WHEEL"] = _WHEEL_TEXT.encode()
    record = f"{information}/RECORD"
    files[record] = _record(files, record).encode()
    return RuntimeWheel(version, f"{_PACKAGE}-{version}-py3-none-any.whl", _archive(files))


def source_files(sources: Path) -> list[Path]:
    """What belongs into the wheel, sorted; never byte code, which pip leaves beside installed sources."""
    found = (sources / _PACKAGE).rglob("*")
    return sorted(
        path for path in found if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    )


def _read_version(sources: Path) -> str:
    for line in (sources / _PACKAGE / "__init__.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__ = "):
            return line.split('"')[1]
    raise AssertionError("the runtime's __init__.py has no __version__")


def _metadata(sources: Path, version: str) -> str:
    project: dict[str, Any] = tomllib.loads((sources / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {project['name']}",
        f"Version: {version}",
        f"Summary: {project['description']}",
        f"License-Expression: {project['license']}",
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {requirement}" for requirement in project["dependencies"]),
    ]
    for extra, requirements in sorted(project["optional-dependencies"].items()):
        lines.append(f"Provides-Extra: {extra}")
        lines.extend(f"Requires-Dist: {requirement}; extra == '{extra}'" for requirement in requirements)
    readme = (sources / project["readme"]).read_text(encoding="utf-8")
    return "\n".join(lines) + f"\nDescription-Content-Type: text/markdown\n\n{readme}"


def _record(files: dict[str, bytes], record: str) -> str:
    lines = [f"{name},sha256={_record_digest(content)},{len(content)}" for name, content in sorted(files.items())]
    return "\n".join([*lines, f"{record},,"]) + "\n"


def _record_digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, date_time=_TIME_STAMP)
            # A regular file, readable by all; the system is set because it would differ on Windows.
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            archive.writestr(entry, content)
    return buffer.getvalue()
