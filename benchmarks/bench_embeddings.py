"""Sentences per second of all-MiniLM-L6-v2: ours, sentence-transformers, ONNX Runtime and OpenVINO.

Run: python -m benchmarks.bench_embeddings [--quick] [--only SYSTEM,…] [--repeats N]
256 texts of mixed length from Python's own documentation, tokenising included, unit vectors out. The error is how far
the lowest cosine to the vectors of sentence-transformers in fp32 is from 1.
"""

import argparse
import base64
import math
import random
import subprocess
import sys
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median

from benchmarks.models import ROOT
from benchmarks.peers import onnx_runtime, openvino_embeddings, sentence_transformers
from benchmarks.report import Aim, Row, print_report, row_of
from benchmarks.systems import THREADS, Child, NotFinishedError, SystemFailedError

MODEL = ROOT / "samples" / "models" / "all-MiniLM-L6-v2"
REFERENCE = ("sentence-transformers", "fp32")
LIMIT_SECONDS = 120.0
INT8_OVER_REFERENCE = 2.5
SEED = 3


def _ours(folder: Path, precision: str, threads: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.ours_embeddings", str(folder), precision, str(threads)]


# By name: how it is started, and at which precisions.
SYSTEMS: dict[str, tuple[Callable[[Path, str, int], list[str]], Sequence[str]]] = {
    "sentence-transformers": (sentence_transformers.command, ["fp32", "bf16"]),
    "flashgen": (_ours, ["fp32", "bf16", "int8"]),
    "onnxruntime": (onnx_runtime.command, ["fp32", "int8"]),
    "openvino": (openvino_embeddings.command, ["fp32", "bf16", "int8"]),
}


def main() -> None:
    """Starts all of them, measures in turn, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="32 texts, one round")
    parser.add_argument("--only", default=",".join(SYSTEMS), help="systems, separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    arguments = parser.parse_args()
    texts = mixed_texts(32 if arguments.quick else 256)
    notes: list[str] = []
    with ExitStack() as stack:
        children: dict[tuple[str, str], Child] = {}
        vectors: dict[tuple[str, str], list[bytes]] = {}
        for name in arguments.only.split(","):
            command, precisions = SYSTEMS[name]
            for precision in precisions:
                try:
                    child = Child(f"{name} {precision} embeddings", command(MODEL, precision, THREADS))
                    stack.callback(child.close)
                    _, vectors[name, precision] = _encode(child, texts)
                    children[name, precision] = child
                except (NotFinishedError, SystemFailedError, subprocess.CalledProcessError) as error:
                    notes.append(f"{name} {precision}: {error}")
        seconds = _measure(children, texts, rounds=1 if arguments.quick else arguments.repeats)
        settings = {key: child.settings for key, child in children.items()}
    rows = _rows(seconds, vectors, settings, len(texts))
    print_report("embeddings", rows, _aims(seconds), ["flashgen-runtime", "torch"], notes=notes)
    sys.exit(bool(notes))


def mixed_texts(count: int) -> list[str]:
    """Consecutive words of the documentation, 4 to 90 of them, by a seed."""
    words = [word for topic in sorted(topics) for word in topics[topic].split()]
    draw = random.Random(SEED)
    texts = []
    for _ in range(count):
        length = round(4 * (90 / 4) ** draw.random())
        start = draw.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts


def _measure(
    children: dict[tuple[str, str], Child], texts: list[str], *, rounds: int
) -> dict[tuple[str, str], list[float]]:
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in children}
    for round_number in range(rounds):
        order = list(children) if round_number % 2 == 0 else list(reversed(children))
        for key in order:
            seconds[key].append(_encode(children[key], texts)[0])
    return seconds


def _encode(child: Child, texts: list[str]) -> tuple[float, list[bytes]]:
    answer = child.ask({"texts": texts}, limit_seconds=LIMIT_SECONDS)
    vectors = [base64.b64decode(vector) for vector in answer["vectors"]]
    if len(vectors) != len(texts) or len(set(map(len, vectors))) != 1:
        raise SystemFailedError(f"{child.name}: expected {len(texts)} equally long vectors, got {len(vectors)}")
    return float(answer["seconds"]), vectors


def _rows(
    seconds: dict[tuple[str, str], list[float]],
    vectors: dict[tuple[str, str], list[bytes]],
    settings: dict[tuple[str, str], str],
    num_texts: int,
) -> list[Row]:
    rows = []
    for (name, precision), values in seconds.items():
        found = [("sentences/s", [num_texts / value for value in values])]
        if REFERENCE in vectors:
            pairs = zip(vectors[name, precision], vectors[REFERENCE], strict=True)
            found.append(("1 - cosine, x 1000", [1000 * max(1 - _cosine(mine, theirs) for mine, theirs in pairs)]))
        rows += [
            row_of(
                numbers,
                system=name,
                precision=precision,
                workload=f"{num_texts} texts",
                metric=metric,
                settings=settings[name, precision],
            )
            for metric, numbers in found
        ]
    return rows


def _aims(seconds: dict[tuple[str, str], list[float]]) -> list[Aim]:
    ours = seconds.get(("flashgen", "int8"))
    theirs = seconds.get(REFERENCE)
    if not ours or not theirs:
        return []
    ratio = median(slow / fast for slow, fast in zip(theirs, ours, strict=True))
    what = "flashgen int8 over sentence-transformers fp32, sorted and padded"
    return [Aim(id="embeddings-int8", what=what, aim=INT8_OVER_REFERENCE, value=round(ratio, 3), at_most=False)]


def _cosine(one: bytes, other: bytes) -> float:
    ours, theirs = array("f", one), array("f", other)
    return sum(x * y for x, y in zip(ours, theirs, strict=True)) / (math.hypot(*ours) * math.hypot(*theirs))


if __name__ == "__main__":
    main()
