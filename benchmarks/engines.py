"""The engines that generate text, in the groups in which they are compared, and the options of those benchmarks."""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.models import ModelShape, model_folder
from benchmarks.peers import llama_cpp, openvino_genai, transformers_generate
from benchmarks.systems import System

PRECISIONS = ("bf16", "int8", "int4")
OURS, OPENVINO, LLAMA = "flashgen", "openvino", "llama.cpp"

# The same model through transformers' class, as architectures run that our own decoder does not know.
OURS_PAGED = "flashgen paged"

# The precision of transformers that is fastest on a CPU is not told by its documentation, so both are run.
TRANSFORMERS = [
    System(f"transformers {name}", precision, command, is_slow=True)
    for precision in ("fp32", "bf16")
    for name, command in (
        ("continuous", transformers_generate.continuous),
        ("padded", transformers_generate.padded),
        ("one by one", transformers_generate.one_by_one),
    )
]


def groups(*, with_transformers: bool = False, llama_precisions: Sequence[str] = PRECISIONS) -> list[list[System]]:
    """By precision: ours and those that can do the same. `llama_precisions`: at which of them llama.cpp is one."""
    by_precision = []
    for precision in PRECISIONS:
        group = [System(OURS, precision, ours), System(OPENVINO, precision, openvino_genai.command)]
        if precision in llama_precisions:
            group.append(System(LLAMA, precision, llama_cpp.command, is_slow=True))
        by_precision.append(group)
    # One at a time: their threads and caches are large.
    return by_precision + [[system] for system in TRANSFORMERS] if with_transformers else by_precision


def only(chosen: Sequence[list[System]], names: str) -> list[list[System]]:
    """The systems whose name, or name and precision, is in a list separated by commas; all of them for an empty one."""
    wanted = set(filter(None, names.split(",")))
    if not wanted:
        return list(chosen)
    known = {name for group in chosen for system in group for name in _names(system)}
    if unknown := wanted - known:
        raise SystemExit(f"unknown systems {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    kept = [[system for system in group if wanted & _names(system)] for group in chosen]
    return [group for group in kept if group]


def ours(shape: ModelShape, precision: str, threads: int) -> list[str]:
    """The command line of flashgen's engine as a child."""
    return [sys.executable, "-m", "benchmarks.ours", str(model_folder(shape)), precision, str(threads)]


def ours_paged(shape: ModelShape, precision: str, threads: int) -> list[str]:
    """The same, made to take the paged path."""
    return [*ours(shape, precision, threads), "paged"]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that the benchmarks of engines share."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="model S and short workloads, one round")
    options.add_argument("--only", default="", help="systems, separated by commas: `flashgen`, `openvino int8`, …")
    options.add_argument("--repeats", type=int, default=3, help="rounds; slow systems run in the first alone")
    options.add_argument("--limit", type=float, default=300.0, help="seconds after which a run is not finished")
    return options


def _names(system: System) -> set[str]:
    return {system.name, f"{system.name} {system.precision}"}
