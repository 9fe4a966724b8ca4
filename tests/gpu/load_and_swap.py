"""Loads and swaps models of real sizes on a card, beside what the disk and the bus can do.

Run in the repository's root: python -m tests.gpu.load_and_swap [--gigabytes 16.4,29.5] [--folder FOLDER] [--repeats N]
Random weights in the layers' real sizes are written there (8B and 14B in bf16), loaded cold and hot by us and by
safetensors, then the first two are swapped: A, B, A, … with the other one's memory given back first. Every load is
compared with what was written. The limits are measured in the same run.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from flashgen_runtime.loader.aligned_file import Write, write_aligned
from flashgen_runtime.loader.cuda import Card, CudaCard, open_on_card
from flashgen_runtime.loader.disk import DiskFile
from flashgen_runtime.loader.memory import STRIPE_BYTES, arena
from flashgen_runtime.loader.stream import stream

THREADS = 8

# A layer's projections in a model of 8B.
LAYER = ((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336))


@dataclass(frozen=True, slots=True)
class Machine:
    """Where weights go. `make_card` is called for every load."""

    device: torch.device
    make_card: Callable[[], Card]
    synchronize: Callable[[], None]


def measure(machine: Machine, folder: Path, gigabytes: list[float], *, repeats: int) -> dict[str, float]:
    """Seconds by what was done, and rates in GB/s; raises if a tensor is not what was written."""
    found: dict[str, float] = {}
    files = [folder / f"{size}.safetensors" for size in gigabytes]
    sums = {path: _write(path, size, machine.device) for path, size in zip(files, gigabytes, strict=True)}
    found["copy GB/s"] = _copy_rate(machine, min(1 << 30, int(max(gigabytes) * 1e9)))
    for path in files:
        size = path.stat().st_size / 1e9
        _drop(path)
        seconds = _timed(lambda path=path: _read_all(path))
        found[f"disk {path.stem} GB/s"] = size / seconds
        for state in ("cold", "hot"):
            times = []
            for _ in range(repeats):
                if state == "cold":
                    _drop(path)
                else:
                    _read_cached(path)
                times.append(_load_time(machine, path, sums[path]))
            found[f"load {path.stem} {state} s"] = median(times)
        found[f"share of the disk, {path.stem} cold"] = seconds / found[f"load {path.stem} cold s"]
        limit = size / found["copy GB/s"]
        found[f"share of the bus, {path.stem} hot"] = limit / found[f"load {path.stem} hot s"]
        found[f"safetensors {path.stem} hot s"] = _safetensors_time(machine, path)
    swaps = [_load_time(machine, path, sums[path]) for _ in range(repeats) for path in files[:2]]
    found["swap p50 s"], found["swap most s"] = median(swaps), max(swaps)
    return found


def _write(path: Path, gigabytes: float, device: torch.device) -> int:
    """A file of layers until it is as large as that; gives the sum of its words."""
    shapes: dict[str, torch.Tensor] = {}
    size = 0
    while size < gigabytes * 1e9:
        shape = LAYER[len(shapes) % len(LAYER)]
        rows = min(shape[0], max(1, int(gigabytes * 1e9 - size) // (2 * shape[1])))
        shapes[f"layers.{len(shapes):05}.weight"] = torch.empty(rows, shape[1], dtype=torch.bfloat16, device="meta")
        size += 2 * rows * shape[1]
    total = 0

    def give(write: Write) -> None:
        nonlocal total
        for name, shape in shapes.items():
            words = torch.randint(-(1 << 15), 1 << 15, tuple(shape.shape), dtype=torch.int16, device=device)
            total += int(words.long().sum())
            write(name, words.view(torch.bfloat16))

    write_aligned(path, shapes, {}, give)
    return total


def _load_time(machine: Machine, path: Path, expected: int) -> float:
    """Until every byte is on the card. The tensors are gone when it returns."""
    started = time.perf_counter()
    files = open_on_card([path], machine.device, card=machine.make_card())
    with stream(files, threads=THREADS).start() as arriving:
        arriving.wait()
    tensors = files[0].tensors()
    machine.synchronize()
    seconds = time.perf_counter() - started
    total = sum(int(tensor.view(torch.int16).long().sum()) for tensor in tensors.values())
    if total != expected:
        raise SystemExit(f"{path.name} is not on the card as it was written: {total} instead of {expected}")
    return seconds


def _safetensors_time(machine: Machine, path: Path) -> float:
    from safetensors.torch import load_file

    _read_cached(path)
    started = time.perf_counter()
    tensors = load_file(path, device=str(machine.device))
    machine.synchronize()
    del tensors
    return time.perf_counter() - started


def _copy_rate(machine: Machine, size: int) -> float:
    """Out of pinned memory, best of five."""
    card, region = machine.make_card(), arena(size)
    region.populate(0, region.size)
    is_pinned = card.pin(region)
    target = card.allocate(region.size)

    def copy() -> None:
        card.copy(region.tensor, target).wait()

    rate = region.size / 1e9 / min(_timed(copy) for _ in range(5))
    if is_pinned:
        card.unpin(region)
    return rate


def _read_all(path: Path) -> None:
    """Past the page cache, into memory that is there already."""
    from concurrent.futures import ThreadPoolExecutor

    size = path.stat().st_size
    region = arena(THREADS * STRIPE_BYTES)
    region.populate(0, region.size)
    disk = DiskFile(path, size)

    def read(thread: int) -> None:
        for start in range(thread * STRIPE_BYTES, size, THREADS * STRIPE_BYTES):
            disk.read(region, start, min(start + STRIPE_BYTES, size), origin=start - thread * STRIPE_BYTES)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, range(THREADS)))
    disk.close()


def _drop(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_cached(path: Path) -> None:
    for _ in _blocks(path):
        pass


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while block := file.read(64 << 20):
            yield block


def _timed(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Measures on the first card, prints a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", default="16.4,29.5")
    parser.add_argument("--folder", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no card here")
    device = torch.device("cuda:0")
    machine = Machine(device, lambda: CudaCard(device), lambda: torch.cuda.synchronize(device))
    sizes = [float(size) for size in arguments.gigabytes.split(",")]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(machine, Path(folder), sizes, repeats=arguments.repeats)
    for name, value in found.items():
        print(f"{name:32} {value:8.3f}")
    print(json.dumps({"card": torch.cuda.get_device_name(device), **found}))


if __name__ == "__main__":
    main()
