"""Time to the first token of one prompt of 1,024 tokens: ours, OpenVINO and llama.cpp at bf16, int8 and int4.

Run: python -m benchmarks.bench_prefill [--quick] [--only SYSTEM,…] [--repeats N]
The ceiling is the operations of layers, head and attention over the rate of a large matrix product at that precision.
"""

import sys

from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.comparison import Comparison, compare
from benchmarks.engines import OPENVINO, OURS, groups, only, parser
from benchmarks.models import M, ModelShape, S
from benchmarks.protocol import Generated
from benchmarks.report import Aim, print_report
from benchmarks.systems import THREADS
from benchmarks.workloads import Workload, prefill


def main() -> None:
    """Compares on model M, or S and a shorter prompt if it is to be quick."""
    arguments = parser(__doc__).parse_args()
    shape = S if arguments.quick else M
    workload = prefill(shape, prompt=256 if arguments.quick else 1024)
    before = measure_ceilings(THREADS)
    chosen = only(groups(), arguments.only)
    rounds = 1 if arguments.quick else arguments.repeats
    comparison = compare(chosen, shape, [workload], rounds=rounds, limit_seconds=arguments.limit)
    ceilings = before.best(measure_ceilings(THREADS))
    rows = comparison.rows(
        workload,
        "seconds",
        lambda generated: generated.seconds,
        model=shape.name,
        ceiling=lambda precision: ceilings.workload_seconds(shape, workload, precision),
    )
    aims = _aims(comparison, shape, workload, ceilings)
    print_report("prefill", rows, aims, ["flashgen-runtime", "torch"], notes=comparison.notes)
    sys.exit(bool(comparison.notes))


def _aims(comparison: Comparison, shape: ModelShape, workload: Workload, ceilings: Ceilings) -> list[Aim]:
    if shape is not M:
        return []
    length = workload.num_prompt_tokens
    operations = shape.operations(length, sampled=1, attended=length * (length + 1) / 2)
    least = operations / ceilings.fp32_operations_per_second

    def share(generated: Generated) -> float:
        return round(100 * least / generated.seconds, 1)

    what = "percent of the measured fp32 matrix rate that bf16 prefill reaches"
    aims = comparison.median_aim("prefill-bf16", (OURS, "bf16"), workload, share, what=what, aim=75.0)
    return aims + comparison.ratio_aim(
        "prefill-int8", (OURS, "int8"), (OPENVINO, "int8"), workload, lambda generated: 1 / generated.seconds, aim=1.6
    )


if __name__ == "__main__":
    main()
