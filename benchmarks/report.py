"""What every benchmark shares: rows with medians and spread, the table, and the last line of JSON."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

# Metrics of which less is better.
TIMES = frozenset({"seconds", "ms", "TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "TPOT p99 ms"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured number; `spread` is its smallest and largest value in this run."""

    system: str
    workload: str
    metric: str
    value: float
    spread: tuple[float, float]
    precision: str = ""

    # What the machine could do at most, in the same unit; `None` where nothing was computed.
    ceiling: float | None = None

    # The way that was taken: code path, kernels, threads, versions.
    settings: str = ""

    @property
    def share(self) -> str:
        """The part of the ceiling that was reached; of a time the ceiling is the least possible."""
        if self.ceiling is None or not self.value:
            return ""
        part = self.ceiling / self.value if self.metric in TIMES else self.value / self.ceiling
        return f"{100 * part:.0f} % of {self.ceiling:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A number that was promised, beside the one that was reached."""

    id: str
    what: str
    aim: float
    value: float
    at_most: bool = True
    met: bool = field(init=False)

    def __post_init__(self) -> None:
        met = self.value <= self.aim if self.at_most else self.value >= self.aim
        object.__setattr__(self, "met", met)


def row_of(
    values: Sequence[float],
    *,
    system: str,
    workload: str,
    metric: str,
    precision: str = "",
    ceiling: float | None = None,
    settings: str = "",
) -> Row:
    """The median of repeated measurements, with their range."""
    return Row(
        system=system,
        workload=workload,
        metric=metric,
        value=round(median(values), 3),
        spread=(round(min(values), 3), round(max(values), 3)),
        precision=precision,
        ceiling=ceiling,
        settings=settings,
    )


def print_report(
    benchmark: str, rows: Iterable[Row], aims: Iterable[Aim], packages: Iterable[str], *, notes: Iterable[str] = ()
) -> None:
    """Prints the table for people and the JSON line for programs.

    Args:
        benchmark: its name without `bench_`.
        rows: what was measured.
        aims: what was promised about them.
        packages: whose versions in this environment are to be told.
        notes: what did not end in a number, and why.
    """
    rows, aims, notes = list(rows), list(aims), list(notes)
    names = [name for name in ("system", "precision", "workload", "metric") if any(getattr(row, name) for row in rows)]
    widths = {name: max(len(getattr(row, name)) for row in rows) for name in names}
    for row in rows:
        columns = "  ".join(getattr(row, name).ljust(width) for name, width in widths.items())
        print(f"{columns} {row.value:10.3f}   {row.spread[0]} to {row.spread[1]}   {row.share}".rstrip())
    for system, settings in _settings(rows).items():
        print(f"{system}: {settings}")
    for note in notes:
        print(f"note: {note}")
    for aim in aims:
        sign = "at most" if aim.at_most else "at least"
        print(f"aim {aim.id}: {aim.what}: {sign} {aim.aim}, reached {aim.value}: {'met' if aim.met else 'NOT met'}")
    report = {
        "benchmark": benchmark,
        "machine": machine(),
        "versions": {name: _version(name) for name in packages},
        "rows": [asdict(row) for row in rows],
        "aims": [{name: value for name, value in asdict(aim).items() if name != "at_most"} for aim in aims],
        "notes": notes,
    }
    print(json.dumps(report, ensure_ascii=False))


def _settings(rows: Iterable[Row]) -> dict[str, str]:
    """By system and precision: how it ran."""
    return {f"{row.system} {row.precision}".strip(): row.settings for row in rows if row.settings}


def machine() -> dict[str, object]:
    """Processor, cores, memory and how busy the machine is, without its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
