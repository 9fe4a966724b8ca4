"""The kernels' libraries: built of the sources that lie beside them, the same bytes everywhere, for every platform."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flashgen.resources import data_dir
from flashgen.runtime_wheel import source_files
from flashgen_runtime.kernels import build as kernels_build
from flashgen_runtime.kernels import library as kernels_library
from flashgen_runtime.kernels.build import ISAS, LIBRARIES, SOURCES

RUNTIME = Path(__file__).parents[2] / "runtime_lib"
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

needs_compiler = pytest.mark.skipif(not kernels_build.has_compiler(), reason="ziglang is not installed")


def load_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", RUNTIME / "hatch_build.py")
    assert spec is not None, "the file exists"
    assert spec.loader is not None, "it is Python"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def libraries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.so"))}


def test_libraries_are_built_of_their_sources() -> None:
    """After a change of a kernel: `python -m flashgen_runtime.kernels.build`."""
    assert kernels_build.is_current()


def write_libraries(target: Path, sources: Path) -> None:
    """What a build leaves, without the compiler."""
    target.mkdir()
    for platform in ISAS:
        (target / f"libflashgen_kernels-{platform}.so").write_bytes(b"")
    (target / kernels_build.DIGEST_FILE).write_text(kernels_build.sources_digest(sources), encoding="ascii")


def test_a_change_of_any_source_makes_the_libraries_old(tmp_path: Path) -> None:
    """Contents and names count, so that a renamed header is seen."""
    sources, target = tmp_path / "sources", tmp_path / "lib"
    shutil.copytree(SOURCES, sources)
    write_libraries(target, sources)
    assert kernels_build.is_current(target, sources=sources)

    (sources / "vector.h").rename(sources / "vectors.h")

    assert not kernels_build.is_current(target, sources=sources)


def test_a_missing_library_is_not_current(tmp_path: Path) -> None:
    """The digest alone does not count."""
    target = tmp_path / "lib"
    write_libraries(target, SOURCES)
    next(target.glob("*.so")).unlink()

    assert not kernels_build.is_current(target)


def test_hook_builds_nothing_when_libraries_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install of a built tree takes no minute."""
    hook = load_hook()
    monkeypatch.setattr(hook, "_load_build", lambda: kernels_build)
    monkeypatch.setattr(kernels_build, "is_current", lambda: True)
    monkeypatch.setattr(kernels_build, "build_all", lambda: pytest.fail("it was built again"))

    hook.KernelsBuildHook(str(RUNTIME), {}, None, None, "", "wheel").initialize("editable", {})


def test_hook_says_what_to_install_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """No half wheel: a build without libraries and without compiler fails and names the package."""
    hook = load_hook()
    monkeypatch.setattr(hook, "_load_build", lambda: kernels_build)
    monkeypatch.setattr(kernels_build, "is_current", lambda: False)
    monkeypatch.setattr(kernels_build, "has_compiler", lambda: False)

    with pytest.raises(RuntimeError, match="pip install ziglang"):
        hook.KernelsBuildHook(str(RUNTIME), {}, None, None, "", "wheel").initialize("standard", {})


def test_libraries_and_sources_travel_in_the_vendored_wheel() -> None:
    """A generated project needs no compiler, and its owner can read what runs."""
    names = {path.name for path in source_files(data_dir("runtime"))}

    assert {f"libflashgen_kernels-{platform}.so" for platform in ISAS} <= names
    assert {path.name for path in SOURCES.iterdir()} <= names


@needs_compiler
@pytest.mark.slow
def test_another_build_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From sources in another folder, with empty caches: what lies beside the sources."""
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(tmp_path / "global"))
    monkeypatch.setenv("ZIG_LOCAL_CACHE_DIR", str(tmp_path / "local"))
    shutil.copytree(SOURCES, tmp_path / "sources")

    kernels_build.build_all(tmp_path / "lib", sources=tmp_path / "sources")

    assert libraries(tmp_path / "lib") == libraries(LIBRARIES)


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(EMULATOR is None, reason="qemu-user-static is not installed")
def test_kernels_for_arm_equal_plain_loops(tmp_path: Path) -> None:
    """The same sources as a program without libraries, run by an emulator."""
    cpu = ISAS["aarch64"]["neon"]
    program = tmp_path / "kernels_on_arm"
    sources = [SOURCES / f"{name}.cpp" for name in ("kernels_for_isa", "dispatch", "thread_pool", "program")]
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", f"-mcpu={cpu}", "-static"),
            *kernels_build.COMPILE_FLAGS,
            *(
                "-DFG_ISA=neon",
                "-iquote",
                SOURCES,
                Path(__file__).with_name("kernels_on_arm.cpp"),
                Path(__file__).with_name("attention_on_arm.cpp"),
                *sources,
                "-o",
                program,
            ),
        ],
        check=True,
    )

    done = subprocess.run([str(EMULATOR), program], capture_output=True, text=True, check=False, env=dict(os.environ))

    assert done.stdout == "neon: right\n"


# --- loading ---------------------------------------------------------------------------------------------------------


def load(monkeypatch: pytest.MonkeyPatch, **environment: str) -> kernels_library.KernelLibrary | None:
    """`library()` in a process with these variables."""
    for name in ("FLASHGEN_KERNELS", "FLASHGEN_KERNELS_LIBRARY", "FLASHGEN_KERNELS_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return kernels_library.library.__wrapped__()


def test_kernels_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """`FLASHGEN_KERNELS=off`: torch does the work, and the log says so once."""
    with caplog.at_level("INFO"):
        assert load(monkeypatch, FLASHGEN_KERNELS="off") is None
    assert [record.message for record in caplog.records] == ["kernels are off"]


def test_a_machine_without_kernels_runs_on_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither error nor silence."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert load(monkeypatch) is None
    assert [record.message for record in caplog.records] == ["no kernels for this machine: torch does the work"]


def test_a_library_that_does_not_load_is_no_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A damaged or missing file is named in the log."""
    path = tmp_path / "kernels.so"
    path.write_bytes(b"damaged")
    assert load(monkeypatch, FLASHGEN_KERNELS_LIBRARY=str(path)) is None
    assert str(path) in str(vars(caplog.records[0])["fields"]["reason"])


@pytest.mark.skipif(not kernels_library.isas(), reason="no kernels for this processor")
def test_an_instruction_set_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """`FLASHGEN_KERNELS_ISA`; the best one without it, and an error for one that is not there."""
    last = kernels_library.isas()[-1]
    try:
        kernels = load(monkeypatch, FLASHGEN_KERNELS_ISA=last)
        assert kernels is not None
        assert kernels.current_isa().decode() == last
        with pytest.raises(ValueError, match="none of this processor's instruction sets"):
            load(monkeypatch, FLASHGEN_KERNELS_ISA="mmx")
    finally:
        kernels_library.select_isa(kernels_library.isas()[0])
