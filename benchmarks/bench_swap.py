"""Many models in the memory of a few: from a request for a model that is not loaded to its first token.

Run: python -m benchmarks.bench_swap [--quick] [--repeats N]
Two workloads. "A-B-A": two models that never fit together are asked in turn, one request at a time. "Zipf": 20 models
of which a quarter fits, requests at random times, the k-th model asked 1/k as often as the first. flashgen's worker
stands beside itself with all models resident, and beside a script that deletes a model and calls `from_pretrained`.
Files lie in the page cache throughout. Memory is private and mapped pages above what the process has without models,
looked at every 10 ms.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.models import CACHE
from benchmarks.report import Aim, Row, print_report, row_of
from benchmarks.swap_models import LlamaShape, write_llama
from benchmarks.swap_traffic import Arrival, percentile, zipf_arrivals
from benchmarks.systems import Child

OURS, RESIDENT, BY_HAND = "flashgen", "flashgen, all resident", "unload + from_pretrained"
TOKENS = 8
LIMIT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is."""

    shape: LlamaShape
    num_models: int
    num_loaded: int
    num_turns: int
    num_requests: int
    requests_per_second: float
    repeats: int


FULL = Scale(LlamaShape(12, 768, 2048, 32000), 20, 5, 20, 300, 5.0, 3)
QUICK = Scale(LlamaShape(4, 256, 512, 4096), 20, 5, 6, 60, 20.0, 1)


class Workload(NamedTuple):
    """What is asked, and of how many models how many may be loaded."""

    name: str
    num_models: int
    num_loaded: int
    arrivals: list[Arrival]


class Run(NamedTuple):
    """One system's answer to one workload."""

    p50_ms: float
    p95_ms: float
    peak_bytes: int
    budget_bytes: int
    settings: str


def main() -> None:
    """Runs each system in turn, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small models, few requests, one round")
    parser.add_argument("--repeats", type=int, help="rounds of each system")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    folder = _models(scale)
    rows: list[Row] = []
    for workload in (_in_turn(scale), _zipf(scale)):
        runs: dict[str, list[Run]] = {}
        for _ in range(arguments.repeats or scale.repeats):
            for system, child in _systems(folder, workload):
                with closing(child):
                    runs.setdefault(system, []).append(_run(child, workload))
        rows += [row for system, found in runs.items() for row in _rows(system, workload, found)]
    print_report("swap", rows, _aims(rows), ["flashgen-runtime", "torch", "transformers"])


def _models(scale: Scale) -> Path:
    folder = CACHE / "swap" / scale.shape.name
    for number in range(scale.num_models):
        write_llama(folder / f"m{number}", scale.shape, seed=number)
    return folder


def _in_turn(scale: Scale) -> Workload:
    # Far enough apart that each waits for nobody.
    gap = 1.0 + 2e-9 * scale.shape.num_bytes
    arrivals = [Arrival(gap * turn, turn % 2) for turn in range(scale.num_turns)]
    return Workload("A-B-A", 2, 1, arrivals)


def _zipf(scale: Scale) -> Workload:
    arrivals = zipf_arrivals(scale.num_models, scale.num_requests, per_second=scale.requests_per_second)
    return Workload(f"Zipf {scale.num_models} models", scale.num_models, scale.num_loaded, arrivals)


def _systems(folder: Path, workload: Workload) -> Iterator[tuple[str, Child]]:
    """One after the other, so that only one is in memory."""
    for system, module, num_loaded in (
        (OURS, "swap_ours", workload.num_loaded),
        (RESIDENT, "swap_ours", workload.num_models),
        (BY_HAND, "swap_transformers", workload.num_loaded),
    ):
        command = [sys.executable, "-m", f"benchmarks.{module}", str(folder), str(workload.num_models), str(num_loaded)]
        yield system, Child(f"swap {system} {workload.name}", command)


def _run(child: Child, workload: Workload) -> Run:
    request: dict[str, object] = {"arrivals": workload.arrivals, "tokens": TOKENS}
    answer = child.ask(request, limit_seconds=LIMIT_SECONDS)
    # The first turn of each model is no swap.
    ttft = answer["ttft"][2:] if workload.name == "A-B-A" else answer["ttft"]
    p50, p95 = (1000 * percentile(ttft, share) for share in (0.5, 0.95))
    return Run(p50, p95, answer["peak_bytes"], answer["budget_bytes"], child.settings)


def _rows(system: str, workload: Workload, runs: Sequence[Run]) -> Iterator[Row]:
    peaks = [run.peak_bytes / 2**20 for run in runs]
    budget = runs[0].budget_bytes / 2**20
    for metric, values, ceiling in (
        ("TTFT p50 ms", [run.p50_ms for run in runs], None),
        ("TTFT p95 ms", [run.p95_ms for run in runs], None),
        ("peak MiB", peaks, budget or None),
    ):
        yield row_of(
            values,
            system=system,
            workload=workload.name,
            metric=metric,
            ceiling=ceiling,
            settings=runs[0].settings,
        )


def _aims(rows: Sequence[Row]) -> list[Aim]:
    value = {(row.system, row.workload, row.metric): row.value for row in rows}
    worst = {(row.workload, row.metric): row for row in rows if row.system == OURS}
    aims = []
    for workload in dict.fromkeys(row.workload for row in rows):
        peak = worst[workload, "peak MiB"]
        assert peak.ceiling is not None, "our worker has a budget"
        aims.append(
            Aim(
                id=f"swap-memory-{workload.split()[0]}",
                what=f"largest peak as a share of the budget, {workload}",
                aim=1.0,
                value=round(peak.spread[1] / peak.ceiling, 3),
            )
        )
        for metric in ("TTFT p50 ms", "TTFT p95 ms"):
            ratio = value[BY_HAND, workload, metric] / value[OURS, workload, metric]
            aims.append(
                Aim(
                    id=f"swap-{metric.split()[1]}-{workload.split()[0]}",
                    what=f"{metric} of unload + from_pretrained over ours, {workload}",
                    aim=2.0,
                    value=round(ratio, 2),
                    at_most=False,
                )
            )
    return aims


if __name__ == "__main__":
    main()
