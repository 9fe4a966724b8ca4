"""From a directory to usable weights, and to the first token: ours beside five other readers, cold and hot.

Run: python -m benchmarks.bench_load [--quick] [--size GB,…] [--only LOADER,…] [--repeats N]
Each load is a fresh process with everything imported; the clock stops when every page of every parameter has been read,
or with the first token. All loaders of a round take turns in random order. Cold: the file was dropped from the page
cache, which is checked; hot: the same loader has just loaded it. The ceiling of a cold load is the disk, read past the
page cache into memory that is there already, in the same rounds. All loaders give the same tensors and tokens, or the
benchmark fails.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import ours_loading
from benchmarks.load_models import LoadShape, nearest_shape, write_checkpoint
from benchmarks.models import ROOT
from benchmarks.peers import loaders
from benchmarks.report import Aim, Row, print_report, row_of
from flashgen_runtime.loader.memory import cached_share

DISK = "bare disk"
OURS_MAP, OURS_ARENA, OURS_FIRST = "flashgen map", "flashgen arena", "flashgen first token"
SAFETENSORS, FIRST = "safetensors load_file", "from_pretrained first token"
SIZES = (0.7, 1.2, 3.4)
QUICK_SIZES = (0.13,)
SEED = 5
LIMIT_SECONDS = 300

# What a page cache may hold of a file that was dropped, and must of one that was read.
COLD_SHARE, HOT_SHARE = 0.05, 0.95


@dataclass(frozen=True, slots=True)
class Place:
    """Where a benchmark's files lie."""

    checkpoint: Path
    store: Path


@dataclass(frozen=True, slots=True)
class Loader:
    """One way to load; `is_cached` if it reads through the page cache."""

    name: str
    command: Callable[[Place], list[str]]
    is_cached: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """What a child said; `touch_seconds` are the last of `seconds`."""

    seconds: float
    cpu_seconds: float
    result: str
    touch_seconds: float = 0.0


Runs = dict[tuple[str, str], list[Run]]


def main() -> None:
    """Writes checkpoints, loads them in turn, prints the report."""
    arguments = _arguments()
    sizes = QUICK_SIZES if arguments.quick else tuple(float(size) for size in arguments.size.split(","))
    repeats = 1 if arguments.quick else arguments.repeats
    rows, aims, notes = [], [], []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_checkpoint(nearest_shape(0), Path(folder) / loaders.TINY)
        for size in sizes:
            shape = nearest_shape(size)
            place = Place(Path(folder) / f"{shape.gigabytes}", Path(folder) / "store")
            chosen = [each for each in LOADERS if not arguments.only or each.name in arguments.only.split(",")]
            runs, failed = _measure(shape, place, chosen, repeats)
            rows += _rows(shape, runs)
            aims += _aims(shape, runs)
            notes += failed
    packages = ["flashgen-runtime", "torch", "safetensors", "transformers"]
    print_report("load", rows, [] if arguments.quick else aims, packages, notes=notes)
    sys.exit(bool(notes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="0.13 GB, once")
    parser.add_argument("--size", default=",".join(map(str, SIZES)), help="gigabytes: 0.13, 0.7, 1.2, 3.4, 6.4")
    parser.add_argument("--only", default="", help="loaders, by name")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", default=None, help="on the disk to be measured; by default the system's for files")
    return parser.parse_args()


def _peer(name: str, loader: str) -> Loader:
    return Loader(name, lambda place: loaders.command(loader, place.checkpoint))


def _ours(name: str, what: str, *, is_cached: bool = True) -> Loader:
    return Loader(name, lambda place: ours_loading.command(what, place.checkpoint, place.store), is_cached)


LOADERS = (
    _ours(DISK, "disk", is_cached=False),
    _ours(OURS_MAP, "map"),
    _ours(OURS_ARENA, "arena", is_cached=False),
    _peer(SAFETENSORS, "safetensors"),
    _peer("from_pretrained", "from_pretrained"),
    _peer("torch.load", "torch.load"),
    _peer("torch.load mmap", "torch.load mmap"),
    _peer("fastsafetensors", "fastsafetensors"),
    _peer("runai-model-streamer", "runai"),
    _ours(OURS_FIRST, "first token"),
    _peer(FIRST, "first token"),
)


def _measure(shape: LoadShape, place: Place, chosen: list[Loader], repeats: int) -> tuple[Runs, list[str]]:
    """All runs by loader and "cold" or "hot", and what failed."""
    write_checkpoint(shape, place.checkpoint)
    if any(loader.name == OURS_FIRST for loader in chosen):
        ours_loading.prepare_for_first_token(place.checkpoint, place.store)
        ours_loading.prepare_for_first_token(place.checkpoint.with_name(loaders.TINY), place.store)
    os.sync()
    runs: Runs = defaultdict(list)
    failed: dict[str, str] = {}
    draw = random.Random(SEED)
    for _ in range(repeats):
        for loader in draw.sample(chosen, len(chosen)):
            for state in ("cold", "hot"):
                if loader.name in failed or (state == "hot" and loader.name == DISK):
                    continue
                try:
                    run = _run(loader, place, state)
                except (subprocess.SubprocessError, RuntimeError) as error:
                    failed[loader.name] = f"{loader.name}, {shape.gigabytes} GB: {error}"
                    print(failed[loader.name], file=sys.stderr)
                else:
                    # NOTE: not before it has ended well, or a loader that fails would leave a row of nothing.
                    runs[loader.name, state].append(run)
    for kind in (True, False):
        _check_equal({name: run for (name, _), all_ in runs.items() for run in all_ if _is_load(name) == kind})
    for path in _files(place):
        path.unlink()
    return runs, list(failed.values())


def _run(loader: Loader, place: Place, state: str) -> Run:
    """One load in a process of its own."""
    command = loader.command(place)
    if state == "cold":
        for path in _files(place):
            _drop(path)
    elif not loader.is_cached:
        # It leaves no trace in the page cache, so somebody else has to.
        for path in place.checkpoint.glob("*.safetensors"):
            path.read_bytes()
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False, env=_environment()
    )
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or ["ended without a word"])[-1])
    return Run(**json.loads(result.stdout.splitlines()[-1]))


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _drop(path: Path) -> None:
    """Out of the page cache; raises if the system keeps it there."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if (share := cached_share(file.fileno())) > COLD_SHARE:
            raise RuntimeError(f"{share:.0%} of {path.name} stays in the page cache")


def _files(place: Place) -> Iterator[Path]:
    """All that a loader may read."""
    for pattern in ("*.safetensors", loaders.PICKLED):
        yield from place.checkpoint.glob(pattern)
    yield from (path for path in place.store.glob("prepared/*/*.safetensors") if path.stat().st_size > 1 << 20)


def _check_equal(runs: dict[str, Run]) -> None:
    found = {name: run.result for name, run in runs.items() if name != DISK}
    if len(set(found.values())) > 1:
        raise SystemExit(f"loaders disagree: {json.dumps(found, indent=2)}")


def _is_load(name: str) -> bool:
    return name not in (OURS_FIRST, FIRST)


def _rows(shape: LoadShape, runs: Runs) -> list[Row]:
    disk = min((run.seconds for run in runs.get((DISK, "cold"), ())), default=None)
    rows = []
    for (name, state), all_ in sorted(runs.items(), key=lambda item: (item[0][1], _is_load(item[0][0]))):
        workload = f"{shape.gigabytes} GB {state}"
        rows.append(
            row_of(
                [run.seconds for run in all_],
                system=name,
                workload=workload,
                metric="seconds",
                ceiling=round(disk, 3) if disk is not None and state == "cold" else None,
            )
        )
        per_gigabyte = [run.cpu_seconds / shape.gigabytes for run in all_]
        rows.append(row_of(per_gigabyte, system=name, workload=workload, metric="CPU seconds per GB"))
        if _is_load(name) and name != DISK:
            touching = [run.touch_seconds for run in all_]
            rows.append(row_of(touching, system=name, workload=workload, metric="seconds of it, touching"))
    return rows


def _aims(shape: LoadShape, runs: Runs) -> list[Aim]:
    """Of medians of what was measured in the same rounds."""
    size = shape.gigabytes
    least = 1.7 if size <= 1.5 else 1.5
    wanted = [
        ("cold", "map", SAFETENSORS, OURS_MAP, "cold", least),
        ("cold", "arena", SAFETENSORS, OURS_ARENA, "cold", least),
        ("disk", "map", DISK, OURS_MAP, "cold", 0.95),
        ("disk", "arena", DISK, OURS_ARENA, "cold", 0.95),
        ("hot", "map", SAFETENSORS, OURS_MAP, "hot", 6.0),
        ("first token", "cold", FIRST, OURS_FIRST, "cold", 2.4),
    ]
    aims = []
    for what, which, theirs, ours, state, aim in wanted:
        pairs = list(zip(runs.get((theirs, state), ()), runs.get((ours, state), ()), strict=False))
        if pairs:
            ratio = median(one.seconds / other.seconds for one, other in pairs)
            text = f"{size} GB, {state}: seconds of `{theirs}` by those of `{ours}`"
            aims.append(
                Aim(
                    id=f"load-{what.replace(' ', '-')}-{which}-{size}",
                    what=text,
                    aim=aim,
                    value=round(ratio, 2),
                    at_most=False,
                )
            )
    return aims


if __name__ == "__main__":
    main()
