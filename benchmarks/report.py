"""What every benchmark shares: rows with medians and spread, the table, and the last line of JSON."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured number; `spread` is its smallest and largest value in this run."""

    system: str
    workload: str
    metric: str
    value: float
    spread: tuple[float, float]
    precision: str = ""


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


def row_of(values: Sequence[float], *, system: str, workload: str, metric: str) -> Row:
    """The median of repeated measurements, with their range."""
    spread = (round(min(values), 3), round(max(values), 3))
    return Row(system=system, workload=workload, metric=metric, value=round(median(values), 3), spread=spread)


def print_report(benchmark: str, rows: Iterable[Row], aims: Iterable[Aim], packages: Iterable[str]) -> None:
    """Prints the table for people and the JSON line for programs."""
    rows, aims = list(rows), list(aims)
    widths = [max(len(str(getattr(row, name))) for row in rows) for name in ("system", "workload", "metric")]
    for row in rows:
        names = zip((row.system, row.workload, row.metric), widths, strict=True)
        print(
            "  ".join(text.ljust(width) for text, width in names),
            f"{row.value:10.3f}   {row.spread[0]} to {row.spread[1]}",
        )
    for aim in aims:
        sign = "at most" if aim.at_most else "at least"
        print(f"aim {aim.id}: {aim.what}: {sign} {aim.aim}, reached {aim.value}: {'met' if aim.met else 'NOT met'}")
    report = {
        "benchmark": benchmark,
        "machine": machine(),
        "versions": {name: _version(name) for name in packages},
        "rows": [asdict(row) for row in rows],
        "aims": [{name: value for name, value in asdict(aim).items() if name != "at_most"} for aim in aims],
    }
    print(json.dumps(report, ensure_ascii=False))


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
