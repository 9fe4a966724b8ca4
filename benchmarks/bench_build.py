"""Start-up and build time of the compiler, cold processes, beside cookiecutter and copier rendering the same tree.

Run: python -m benchmarks.bench_build [--quick] [--only SYSTEM,…]
CPU time (user and system) of whole processes, interleaved; also as multiples of `python -c pass` in the same run, which
makes numbers of different machines comparable. copier is an extra of this benchmark: `pip install copier`.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.peers.templates import cookiecutter_template, copier_template
from benchmarks.report import Aim, Row, print_report, row_of

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "samples" / "01-complete-python" / "flashgen.yaml"
AIMS = {"help": 3.0, "validate": 11.0, "build, warm cache": 25.0, "build, cold cache": 31.0}


@dataclass(frozen=True, slots=True)
class Case:
    """One command and what has to be put in place before each run."""

    system: str
    workload: str
    command: list[str]
    prepare: Callable[[], object] = lambda: None
    environment: tuple[tuple[str, str], ...] = ()


def main() -> None:
    """Measures every case in turn, as often as asked, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 15")
    parser.add_argument("--only", default="", help="systems, separated by commas")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chosen = set(filter(None, arguments.only.split(",")))
        cases = [case for case in _cases(Path(folder)) if not chosen or case.system in chosen | {"python"}]
        seconds = _measure(cases, rounds=3 if arguments.quick else 15)
    rows, aims = _rows(seconds)
    print_report("build", rows, aims, ["flashgen", "cookiecutter", "copier", "jinja2", "jsonschema", "pyyaml"])


def _cases(folder: Path) -> list[Case]:
    flashgen = [str(Path(sys.executable).with_name("flashgen"))]
    out, warm, cold = folder / "out", folder / "warm-cache", folder / "cold-cache"
    tree = folder / "tree"
    build = [*flashgen, "build", str(SAMPLE), "-o"]
    _run([*build, str(tree)], {"XDG_CACHE_HOME": str(warm)})

    def clear() -> None:
        shutil.rmtree(out, ignore_errors=True)

    def clear_all() -> None:
        clear()
        shutil.rmtree(cold, ignore_errors=True)

    cases = [
        Case("python", "-c pass", [sys.executable, "-c", "pass"]),
        Case("flashgen", "help", [*flashgen, "--help"]),
        Case("flashgen", "validate", [*flashgen, "validate", str(SAMPLE)]),
        Case("flashgen", "build, warm cache", [*build, str(out)], clear, (("XDG_CACHE_HOME", str(warm)),)),
        Case("flashgen", "build, cold cache", [*build, str(out)], clear_all, (("XDG_CACHE_HOME", str(cold)),)),
        Case("flashgen", "build, nothing new", [*build, str(tree)], environment=(("XDG_CACHE_HOME", str(warm)),)),
        Case("cookiecutter", "same tree", cookiecutter_template(tree, folder / "cookiecutter", out), clear),
    ]
    if shutil.which("copier", path=str(Path(sys.executable).parent)):
        cases.append(Case("copier", "same tree", copier_template(tree, folder / "copier", out), clear))
    return cases


def _measure(cases: list[Case], *, rounds: int) -> dict[tuple[str, str], list[float]]:
    seconds: dict[tuple[str, str], list[float]] = {}
    for round_number in range(rounds + 1):
        for case in cases:
            case.prepare()
            used = _run(case.command, dict(case.environment))
            # The first round warms the disk's cache.
            if round_number:
                seconds.setdefault((case.system, case.workload), []).append(used)
    return seconds


def _run(command: list[str], environment: dict[str, str]) -> float:
    """CPU seconds of one process with its children; raises if it fails."""
    # An installed package runs from bytecode; this variable would have every run compile it anew.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    discard = os.open(os.devnull, os.O_WRONLY)
    child = os.posix_spawn(
        command[0],
        command,
        {**inherited, **environment},
        file_actions=[(os.POSIX_SPAWN_DUP2, discard, 1), (os.POSIX_SPAWN_DUP2, discard, 2)],
    )
    os.close(discard)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime


def _rows(seconds: dict[tuple[str, str], list[float]]) -> tuple[list[Row], list[Aim]]:
    floor = median(seconds["python", "-c pass"])
    rows, aims = [], []
    for (system, workload), values in seconds.items():
        rows.append(row_of([1000 * v for v in values], system=system, workload=workload, metric="CPU ms"))
        multiple = row_of([v / floor for v in values], system=system, workload=workload, metric="x python -c pass")
        rows.append(multiple)
        if system == "flashgen" and workload in AIMS:
            what = f"`flashgen`, {workload}, multiples of `python -c pass`"
            aims.append(Aim(id=workload, what=what, aim=AIMS[workload], value=multiple.value))
    return rows, aims


if __name__ == "__main__":
    main()
