"""Several systems on the same workloads in one run: started in groups, measured in turn, repeated.

Systems of a group are loaded together and take turns, in the opposite order every other round, so that what the machine
does meanwhile meets all of them. Ratios are made within a round.
"""

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from benchmarks.models import ModelShape
from benchmarks.protocol import Generated
from benchmarks.report import Aim, Row, row_of
from benchmarks.systems import THREADS, Child, NotFinishedError, System, SystemFailedError
from benchmarks.workloads import Workload, warm_up

Metric = Callable[[Generated], float]


@dataclass(slots=True)
class Comparison:
    """What was measured: by system and workload, one entry a round."""

    runs: dict[tuple[System, str], list[Generated]] = field(default_factory=dict)
    settings: dict[System, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rows(
        self,
        workload: Workload,
        metric: str,
        value: Metric,
        *,
        model: str,
        ceiling: Callable[[str], float | None] = lambda _: None,
    ) -> list[Row]:
        """One row for each system that ran the workload; `ceiling` by precision."""
        return [
            row_of(
                [value(generated) for generated in runs],
                system=system.name,
                precision=system.precision,
                workload=f"{model}: {workload.name}",
                metric=metric,
                ceiling=ceiling(system.precision),
                settings=self.settings[system],
            )
            for (system, name), runs in self.runs.items()
            if name == workload.name
        ]

    def ratio_aim(
        self,
        identifier: str,
        one: tuple[str, str],
        other: tuple[str, str],
        workload: Workload,
        value: Metric,
        *,
        aim: float,
    ) -> list[Aim]:
        """That `one` reaches `aim` times the other's number, median over the rounds; nothing unless both ran.

        A system is given by its name and precision.
        """
        ones, others = self._values(one, workload, value), self._values(other, workload, value)
        if not ones or not others:
            return []
        if len(others) < len(ones):
            others = [median(others)] * len(ones)
        ratio = median(mine / theirs for mine, theirs in zip(ones, others, strict=False))
        what = f"{' '.join(one)} over {' '.join(other)}, {workload.name}"
        return [Aim(id=identifier, what=what, aim=aim, value=round(ratio, 3), at_most=False)]

    def median_aim(
        self, identifier: str, system: tuple[str, str], workload: Workload, value: Metric, *, what: str, aim: float
    ) -> list[Aim]:
        """That a system's median is at least `aim`; nothing unless it ran."""
        values = self._values(system, workload, value)
        if not values:
            return []
        return [Aim(id=identifier, what=what, aim=aim, value=round(median(values), 3), at_most=False)]

    def _values(self, name_and_precision: tuple[str, str], workload: Workload, value: Metric) -> list[float]:
        for (system, workload_name), runs in self.runs.items():
            if (system.name, system.precision) == name_and_precision and workload_name == workload.name:
                return [value(generated) for generated in runs]
        return []


def compare(
    groups: Iterable[Sequence[System]],
    shape: ModelShape,
    workloads: Sequence[Workload],
    *,
    rounds: int,
    limit_seconds: float,
) -> Comparison:
    """Runs every workload on every system; one that fails or takes too long is out, with a note."""
    comparison = Comparison()
    for group in groups:
        with ExitStack() as stack:
            children: dict[System, Child] = {}
            for system in group:
                try:
                    child = Child(f"{system.name} {system.precision}", system.command(shape, system.precision, THREADS))
                    stack.callback(child.close)
                    child.generate(warm_up(shape), limit_seconds=limit_seconds)
                except (NotFinishedError, SystemFailedError, subprocess.CalledProcessError) as error:
                    _note(comparison, f"{system.name} {system.precision}, start: {error}")
                    continue
                children[system] = child
                comparison.settings[system] = child.settings
            for round_number in range(rounds):
                _run_round(comparison, children, workloads, round_number, limit_seconds)
    return comparison


def tokens_per_second(generated: Generated) -> float:
    """New tokens over the whole time, prefill included."""
    return sum(generated.num_tokens) / generated.seconds


def _run_round(
    comparison: Comparison,
    children: dict[System, Child],
    workloads: Sequence[Workload],
    round_number: int,
    limit_seconds: float,
) -> None:
    order = list(children) if round_number % 2 == 0 else list(reversed(children))
    for workload in workloads:
        for system in order:
            if system not in children or (system.is_slow and round_number):
                continue
            try:
                generated = children[system].generate(workload, limit_seconds=limit_seconds)
            except (NotFinishedError, SystemFailedError) as error:
                _note(comparison, f"{system.name} {system.precision}, {workload.name}: {error}")
                del children[system]
                continue
            print(f"{system.name} {system.precision}, {workload.name}: {generated.seconds:.2f} s", file=sys.stderr)
            comparison.runs.setdefault((system, workload.name), []).append(generated)


def _note(comparison: Comparison, text: str) -> None:
    comparison.notes.append(text)
    print(text, file=sys.stderr)
