import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import flashgen_runtime
from flashgen.resources import data_dir
from flashgen.runtime_wheel import RuntimeWheel, runtime_version, runtime_wheel, source_files, write_wheel


def small_sources(folder: Path) -> Path:
    """A runtime of two modules."""
    package = folder / "flashgen_runtime"
    (package / "server" / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text('"""Small."""\n\n__version__ = "9.8.7"\n', encoding="utf-8")
    (package / "server" / "__init__.py").write_text("ANSWER = 42\n", encoding="utf-8")
    (package / "server" / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"\0")
    (folder / "README.md").write_text("# Small\n", encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        """\
[project]
name = "flashgen-runtime"
description = "Small"
readme = "README.md"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = ["msgspec>=0.19"]

[project.optional-dependencies]
worker = ["torch>=2.9"]
server = ["fastapi>=0.115", "uvicorn>=0.34"]
""",
        encoding="utf-8",
    )
    return folder


def members(wheel: RuntimeWheel) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    """Whatever their times and modes are, and wherever they lie."""
    first = small_sources(tmp_path / "a")
    second = small_sources(tmp_path / "b")
    (second / "flashgen_runtime" / "__init__.py").chmod(0o700)

    assert write_wheel(first).content == write_wheel(second).content


def test_the_wheel_has_what_a_wheel_has(tmp_path: Path) -> None:
    """Sorted members, no byte code, a name from its version."""
    wheel = write_wheel(small_sources(tmp_path))

    assert wheel.file_name == "flashgen_runtime-9.8.7-py3-none-any.whl"
    assert list(members(wheel)) == [
        "flashgen_runtime-9.8.7.dist-info/METADATA",
        "flashgen_runtime-9.8.7.dist-info/RECORD",
        "flashgen_runtime-9.8.7.dist-info/WHEEL",
        "flashgen_runtime/__init__.py",
        "flashgen_runtime/server/__init__.py",
    ]


def test_the_real_wheel_carries_what_is_no_python() -> None:
    """The documentation page and the marker for type checkers come along."""
    names = members(runtime_wheel()).keys()

    assert {"flashgen_runtime/server/documentation.html", "flashgen_runtime/py.typed"} <= names


def test_the_record_lists_every_member_with_its_digest(tmp_path: Path) -> None:
    """pip checks it."""
    files = members(write_wheel(small_sources(tmp_path)))
    rows = {
        row[0]: row[1:] for row in csv.reader(files["flashgen_runtime-9.8.7.dist-info/RECORD"].decode().splitlines())
    }

    assert rows.keys() == files.keys()
    for name, content in files.items():
        if not name.endswith("RECORD"):
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert rows[name] == [f"sha256={digest}", str(len(content))]


def test_the_metadata_names_dependencies_and_extras(tmp_path: Path) -> None:
    """A project installs `flashgen-runtime[server]` or `[worker]`."""
    files = members(write_wheel(small_sources(tmp_path)))
    metadata = Parser().parsestr(files["flashgen_runtime-9.8.7.dist-info/METADATA"].decode())

    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == (
        "flashgen-runtime",
        "9.8.7",
        ">=3.11",
    )
    assert metadata.get_all("Provides-Extra") == ["server", "worker"]
    assert metadata.get_all("Requires-Dist") == [
        "msgspec>=0.19",
        "fastapi>=0.115; extra == 'server'",
        "uvicorn>=0.34; extra == 'server'",
        "torch>=2.9; extra == 'worker'",
    ]
    assert metadata.get_payload() == "# Small\n"


def test_the_wheel_that_ships_holds_every_source_of_the_runtime() -> None:
    """All of its modules, and the marker for type checkers."""
    wheel = runtime_wheel()
    sources = data_dir("runtime")

    names = {path.relative_to(sources).as_posix() for path in source_files(sources)}
    assert names == {name for name in members(wheel) if ".dist-info/" not in name}
    assert "flashgen_runtime/py.typed" in names
    assert wheel.version == runtime_version() == flashgen_runtime.__version__


@pytest.mark.parametrize("extra", ["", "[server]"])
def test_pip_accepts_the_wheel(tmp_path: Path, extra: str) -> None:
    """It checks the record and the metadata; dependencies are another matter."""
    wheel = write_wheel(small_sources(tmp_path / "sources"))
    path = tmp_path / wheel.file_name
    path.write_bytes(wheel.content)
    target = tmp_path / "target"

    options = ["--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, f"{path}{extra}"], check=True)

    assert (target / "flashgen_runtime" / "server" / "__init__.py").read_text(encoding="utf-8") == "ANSWER = 42\n"
    assert (target / "flashgen_runtime-9.8.7.dist-info" / "METADATA").is_file()
