"""Cold start: from a request to its first token, when no process has the model yet.

Run: python -m benchmarks.bench_start [--quick] [--shapes M,L] [--caches hot,cold] [--rounds N]
Three ways: a worker forked by flashgen's fork server; a fresh process of flashgen; a fresh process that imports
transformers, calls `from_pretrained` and generates. All in bf16 with all processors. "cold" drops the files of the
model from the page cache before each start; libraries stay in it. flashgen's weights were prepared by a start before.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.models import ROOT, SHAPES, ModelShape, model_folder
from benchmarks.report import Aim, Row, print_report, row_of
from benchmarks.systems import THREADS, Child, SystemFailedError

FORKED, FRESH, THEIRS = "flashgen, forked", "flashgen, fresh", "from_pretrained, fresh"
PROMPT = "import os\n\n\ndef walk(top):\n    for name in"
LIMIT_SECONDS = 300.0

# How many times faster than a fresh process that runs `from_pretrained` the fork server shall be.
AIMS = {("M", "hot"): 8.0, ("L", "hot"): 4.0, ("L", "cold"): 5.0}

Start = Callable[[], tuple[float, str]]


def main() -> None:
    """Starts everything in turn, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small model, hot, once")
    parser.add_argument("--shapes", default="M,L", help="of benchmarks.models: S, M, L")
    parser.add_argument("--caches", default="hot,cold", help="the page cache: hot, cold or both")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.caches, arguments.rounds = "S", "hot", 1
    rows: list[Row] = []
    notes: list[str] = []
    aims: list[Aim] = []
    for name in arguments.shapes.split(","):
        with tempfile.TemporaryDirectory(dir=model_folder(SHAPES[name]).parent) as store:
            for cache in arguments.caches.split(","):
                seconds, tokens = _measure(SHAPES[name], cache, arguments.rounds, Path(store))
                rows += [
                    row_of(found, system=system, precision="bf16", workload=f"{name} {cache}", metric="seconds")
                    for system, found in seconds.items()
                ]
                aims += _aims(name, cache, seconds)
                notes += [f"{name} {cache}: first tokens differ: {tokens}"] if len(set(tokens.values())) > 1 else []
    print_report("start", rows, aims, ["flashgen-runtime", "torch", "transformers", "tokenizers"], notes=notes)


def _measure(shape: ModelShape, cache: str, rounds: int, store: Path) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every round and the last token, by system."""
    folder = model_folder(shape)
    os.environ["FLASHGEN_STORE"] = str(store)
    seconds: dict[str, list[float]] = {}
    tokens: dict[str, str] = {}
    prepare = [sys.executable, "-m", "benchmarks.start_ours", str(folder), "prepare", str(THREADS)]
    subprocess.run(prepare, cwd=ROOT, check=True)
    with _starts(folder) as starts:
        # Libraries and files are in the page cache.
        for start in starts.values():
            start()
        for number in range(rounds):
            for system, start in starts.items():
                if cache == "cold":
                    _drop_from_page_cache([*folder.glob("*.safetensors"), *store.rglob("*.safetensors")])
                found, tokens[system] = start()
                seconds.setdefault(system, []).append(found)
            print(f"{shape.name} {cache}, round {number + 1}: done", file=sys.stderr)
    return seconds, tokens


@contextmanager
def _starts(folder: Path) -> Iterator[dict[str, Start]]:
    """What starts each system once and gives seconds and token."""
    ours = [sys.executable, "-m", "benchmarks.start_ours", str(folder)]
    theirs = [sys.executable, "-m", "benchmarks.peers.transformers_start", str(folder), str(THREADS)]
    with closing(Child("start-forked", [*ours, "forked", str(THREADS)])) as server:

        def forked() -> tuple[float, str]:
            answer = server.ask({"prompt": PROMPT}, limit_seconds=LIMIT_SECONDS)
            return answer["seconds"], answer["token"]

        yield {
            FORKED: forked,
            FRESH: lambda: _fresh([*ours, "fresh", str(THREADS)]),
            THEIRS: lambda: _fresh(theirs),
        }


def _fresh(command: Sequence[str]) -> tuple[float, str]:
    """From before the process exists until its token is here."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"prompt": PROMPT}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    seconds = time.perf_counter() - began
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    if not line:
        raise SystemFailedError(f"{' '.join(command)} ended with {process.returncode}:\n{errors}")
    return seconds, json.loads(line)["token"]


def _drop_from_page_cache(files: Sequence[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _aims(shape: str, cache: str, seconds: dict[str, list[float]]) -> list[Aim]:
    """The median of the ratios of each round."""
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds[FORKED], seconds[THEIRS], strict=True))
    aim = AIMS.get((shape, cache))
    if aim is None:
        return []
    what = f"{shape} {cache}: times faster than a fresh process that runs `from_pretrained`"
    value = round(ratios[len(ratios) // 2], 2)
    return [Aim(id=f"start-{shape}-{cache}", what=what, aim=aim, value=value, at_most=False)]


if __name__ == "__main__":
    main()
