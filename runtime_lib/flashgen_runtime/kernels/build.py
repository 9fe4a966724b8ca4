"""Builds the kernels' libraries, one per platform, with the compiler in `ziglang`: the same bytes everywhere.

python -m flashgen_runtime.kernels.build [--platform x86_64|aarch64] [--only ISA] [--sources DIR] [-o DIR]

Needs the standard library and `ziglang` only, so that it also runs while the wheel is built.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

KERNELS = Path(__file__).parent
SOURCES = KERNELS / "sources"
LIBRARIES = KERNELS / "lib"

# Beside the libraries: of what they were built.
DIGEST_FILE = "sources.sha256"

# The oldest glibc that the libraries run with: that of the manylinux_2_28 wheels.
GLIBC = "2.28"

# Processors, as the compiler names them, by instruction set and platform.
ISAS: dict[str, dict[str, str]] = {
    "x86_64": {
        "avx2": "x86_64_v3",
        "avx512": "x86_64_v4",
        "avx512_vnni": "x86_64_v4+avx512vnni",
        "avx512_bf16": "x86_64_v4+avx512vnni+avx512bf16",
        "amx": "x86_64_v4+avx512vnni+avx512bf16+amx_tile+amx_int8+amx_bf16",
    },
    "aarch64": {"neon": "generic+v8_2a+fullfp16+dotprod"},
}
_BASE_CPUS = {"x86_64": "x86_64_v2", "aarch64": "generic"}

# Compiled once per instruction set; every other source once. AMX has only linear layers of its own.
_KERNELS_SOURCE = "kernels_for_isa.cpp"
_OTHER_SOURCES = {"amx": "linear_tiles.cpp"}

# No contraction: the order of operations is the source's. No C++ library: the only dependency is glibc. Vectors of 512
# bits are wanted where the compiler's own choice would be 256.
COMPILE_FLAGS = [
    *("-O3", "-g0", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-nostdlib++"),
    *("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fno-math-errno", "-ffp-contract=off"),
    # Vectors wider than the processor's registers are passed between our own functions only.
    *("-Wall", "-Wno-psabi"),
]
_FLAGS = {"x86_64": ["-mprefer-vector-width=512"], "aarch64": []}


def build(
    platform: str, target: Path, *, sources: Path = SOURCES, isas: Sequence[str] = (), defines: Sequence[str] = ()
) -> Path:
    """Builds the library of one platform into the folder `target`, with all of its instruction sets or some.

    `defines` are names that tests define: see `FG_EMULATED_TILES`.

    Raises `subprocess.CalledProcessError` when the compiler refuses; its words are on stderr.
    """
    target.mkdir(parents=True, exist_ok=True)
    library = target / f"libflashgen_kernels-{platform}.so"
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(
            pool.map(
                lambda unit: _compile(platform, unit, sources, Path(folder), defines=defines),
                _units(sources, isas or ISAS[platform]),
            )
        )
        # A name of its own until it is whole: another process may be loading the library.
        unfinished = Path(folder) / library.name
        _run(
            platform,
            _BASE_CPUS[platform],
            "-shared",
            "-nostdlib++",
            *objects,
            "-lpthread",
            "-lm",
            "-s",
            "-o",
            unfinished,
        )
        _move(unfinished, library)
    return library


def build_all(target: Path = LIBRARIES, *, sources: Path = SOURCES) -> list[Path]:
    """Builds the libraries of all platforms, and notes of what, so that `is_current` knows."""
    libraries = [build(platform, target, sources=sources) for platform in ISAS]
    (target / DIGEST_FILE).write_text(sources_digest(sources) + "\n", encoding="ascii")
    return libraries


def is_current(target: Path = LIBRARIES, *, sources: Path = SOURCES) -> bool:
    """Whether all libraries lie in `target` and were built of these sources."""
    digest = target / DIGEST_FILE
    return (
        digest.is_file()
        and digest.read_text(encoding="ascii").strip() == sources_digest(sources)
        and all((target / f"libflashgen_kernels-{platform}.so").is_file() for platform in ISAS)
    )


def has_compiler() -> bool:
    """Whether `ziglang` is installed."""
    return find_spec("ziglang") is not None


def sources_digest(sources: Path = SOURCES) -> str:
    """SHA-256 over the names and contents of the sources and over this file."""
    digest = hashlib.sha256()
    for path in [*sorted(sources.iterdir()), Path(__file__)]:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """The command line: see above."""
    parser = argparse.ArgumentParser(prog="python -m flashgen_runtime.kernels.build", description=__doc__)
    parser.add_argument("--platform", choices=ISAS, help="one platform (default: all)")
    parser.add_argument("--only", metavar="ISA", action="append", help="one instruction set; may be given again")
    parser.add_argument("--sources", type=Path, default=SOURCES)
    parser.add_argument("-o", "--output", type=Path, default=LIBRARIES)
    arguments = parser.parse_args()
    if arguments.platform is None and arguments.only is None:
        build_all(arguments.output, sources=arguments.sources)
        return
    platform = arguments.platform or next(p for p, isas in ISAS.items() if set(arguments.only) <= set(isas))
    build(platform, arguments.output, sources=arguments.sources, isas=arguments.only or ())


def _units(sources: Path, isas: Sequence[str] | dict[str, str]) -> Iterator[tuple[str, str | None]]:
    """Source file and instruction set of every object: in a fixed order, the long ones first."""
    for isa in isas:
        yield _OTHER_SOURCES.get(isa, _KERNELS_SOURCE), isa
    for path in (sources / "dispatch.cpp", sources / "program.cpp", sources / "thread_pool.cpp"):
        yield path.name, None


def _compile(
    platform: str, unit: tuple[str, str | None], sources: Path, folder: Path, *, defines: Sequence[str]
) -> Path:
    source, isa = unit
    target = folder / f"{Path(source).stem}-{isa}.o"
    cpu = ISAS[platform][isa] if isa else _BASE_CPUS[platform]
    define = [f"-D{name}" for name in [*([f"FG_ISA={isa}"] if isa else []), *defines]]
    # The path goes into no byte of the object: the compiler sees the file's name alone.
    _run(platform, cpu, *COMPILE_FLAGS, *_FLAGS[platform], *define, "-c", source, "-o", target, folder=sources)
    return target


def _run(platform: str, cpu: str, *arguments: str | Path, folder: Path | None = None) -> None:
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", f"{platform}-linux-gnu.{GLIBC}", f"-mcpu={cpu}"]
    subprocess.run([*compiler, *map(str, arguments)], check=True, cwd=folder)


def _move(source: Path, target: Path) -> None:
    """As `Path.replace`, across file systems too: readers of `target` see the old file or the new one."""
    neighbour = target.with_name(f".{target.name}.{os.getpid()}")
    neighbour.write_bytes(source.read_bytes())
    neighbour.chmod(0o755)
    neighbour.replace(target)


if __name__ == "__main__":
    main()
