"""What scheduling and sampling take of a step: model M, 32 requests that decode together.

Run: python -m benchmarks.bench_sampling [--quick] [--repeats N] [--precision PRECISION]
int8 is the hardest precision to be small beside: at 32 requests its forward pass is the shortest. "rest" is building
the batch, turning tokens into text, and what the clock itself takes.
"""

import argparse
from contextlib import closing
from typing import Any

from benchmarks.engines import OURS, ours
from benchmarks.models import M, ModelShape, S
from benchmarks.report import Aim, Row, print_report, row_of
from benchmarks.systems import THREADS, Child
from benchmarks.workloads import batch

NUM_REQUESTS = 32
MOST_PERCENT = 5.0
LIMIT_SECONDS = 120.0

# By name: parameters of all requests.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "top-k": {"temperature": 0.8, "top_k": 50, "seed": 1},
    "top-p": {"temperature": 0.8, "top_p": 0.9, "seed": 1},
    "all": {
        "temperature": 0.8,
        "top_k": 200,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.95,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "logit_bias": [[1, 1.0], [2, -1.0]],
        "seed": 1,
        "logprobs": 5,
    },
}


def main() -> None:
    """Measures each way of sampling in turn, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="model S, few tokens, one round")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--precision", default="int8", help="of the weights")
    arguments = parser.parse_args()
    shape = S if arguments.quick else M
    rounds = 1 if arguments.quick else arguments.repeats
    command = [*ours(shape, arguments.precision, THREADS), "profile"]
    with closing(Child(f"{OURS} {arguments.precision} profile", command)) as child:
        shares = _measure(child, shape, rounds=rounds)
        rows = _rows(shares, shape, arguments.precision, child.settings)
    print_report("sampling", rows, [] if arguments.quick else _aims(rows), ["flashgen-runtime", "torch"])


def _measure(child: Child, shape: ModelShape, *, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Percent of all steps' time, by sampling and part."""
    workload = batch(shape, NUM_REQUESTS, prompt=16, output=24)
    shares: dict[tuple[str, str], list[float]] = {}
    for round_number in range(rounds + 1):
        for name, sampling in SAMPLINGS.items():
            request = {"prompts": workload.prompts, "output_lengths": workload.output_lengths, "sampling": sampling}
            answer = child.ask(request, limit_seconds=LIMIT_SECONDS)
            # The first round warms up.
            if round_number:
                parts = {**answer["parts"], "rest": answer["seconds"] - sum(answer["parts"].values())}
                parts["scheduler and sampler"] = parts["scheduler"] + parts["sampler"]
                for part, seconds in parts.items():
                    shares.setdefault((name, part), []).append(100 * seconds / answer["seconds"])
    return shares


def _rows(shares: dict[tuple[str, str], list[float]], shape: ModelShape, precision: str, settings: str) -> list[Row]:
    return [
        row_of(
            values,
            system=OURS,
            precision=precision,
            workload=f"{shape.name}: {NUM_REQUESTS} requests, {name}",
            metric=f"% of a step, {part}",
            settings=settings,
        )
        for (name, part), values in shares.items()
    ]


def _aims(rows: list[Row]) -> list[Aim]:
    return [
        Aim(
            id=f"sampling-{row.workload.rpartition(' ')[2]}",
            what=f"percent of a step that scheduler and sampler take, {row.workload}",
            aim=MOST_PERCENT,
            value=row.value,
        )
        for row in rows
        if row.metric.endswith("scheduler and sampler")
    ]


if __name__ == "__main__":
    main()
