"""Where the time of our own forward passes goes, by kind of operation, on model M at bf16, int8 and int4.

Run: python -m benchmarks.bench_profile [--quick] [--precisions bf16,int8,int4]
Three workloads: one request that decodes, 32 requests of mixed lengths, one prompt. Operations are timed one at a time,
so what a step as a whole saves by going on at once is not seen; shares are what to read.
"""

import argparse
from collections.abc import Iterator
from contextlib import closing

from benchmarks.engines import OURS, PRECISIONS, ours
from benchmarks.models import M, ModelShape, S
from benchmarks.report import Row, print_report, row_of
from benchmarks.systems import THREADS, Child
from benchmarks.workloads import Workload, batch, mixed, prefill

LIMIT_SECONDS = 300.0


def main() -> None:
    """Profiles each precision in a process of its own, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="model S, short workloads")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="separated by commas")
    arguments = parser.parse_args()
    shape = S if arguments.quick else M
    rows: list[Row] = []
    for precision in arguments.precisions.split(","):
        command = [*ours(shape, precision, THREADS), "profile"]
        with closing(Child(f"{OURS} {precision} profile", command)) as child:
            for workload in _workloads(shape, is_short=arguments.quick):
                rows += _rows(child, workload, shape, precision)
    print_report("profile", rows, [], ["flashgen-runtime", "torch"])


def _workloads(shape: ModelShape, *, is_short: bool) -> Iterator[Workload]:
    yield batch(shape, 1, prompt=64, output=8 if is_short else 32)
    yield mixed(shape, is_short=is_short)
    yield prefill(shape, prompt=256 if is_short else 1024)


def _rows(child: Child, workload: Workload, shape: ModelShape, precision: str) -> list[Row]:
    request: dict[str, object] = {
        "prompts": workload.prompts,
        "output_lengths": workload.output_lengths,
        "sampling": {"temperature": 0.0},
        "with_operations": True,
    }
    answer = child.ask(request, limit_seconds=LIMIT_SECONDS)
    total = sum(answer["operations"].values())
    values = {f"% {name}": 100 * seconds / total for name, seconds in answer["operations"].items()}
    values |= {"seconds, one at a time": total, "seconds, as it runs": answer["parts"]["model"]}
    return [
        row_of(
            [value],
            system=OURS,
            precision=precision,
            workload=f"{shape.name}: {workload.name}",
            metric=metric,
            settings=child.settings,
        )
        for metric, value in values.items()
    ]


if __name__ == "__main__":
    main()
