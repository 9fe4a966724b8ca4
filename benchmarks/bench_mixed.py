"""Throughput under 32 requests of very different lengths, submitted at once: ours and the peers, at equal precision.

Run: python -m benchmarks.bench_mixed [--quick] [--only SYSTEM,…] [--repeats N] [--models M,S]
The same model files, prompts and lengths, greedy, counted tokens, all threads. On model S transformers runs besides:
its continuous batching, `generate` on a padded batch, and `generate` one by one. The ceiling is the least time of each
step: bytes over the measured bandwidth, or operations over the rate of a large matrix product.
"""

import sys

from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.comparison import Comparison, compare, tokens_per_second
from benchmarks.engines import LLAMA, OPENVINO, OURS, PRECISIONS, groups, only, parser
from benchmarks.models import SHAPES, M, ModelShape, S
from benchmarks.report import Aim, Row, print_report
from benchmarks.systems import THREADS
from benchmarks.workloads import Workload, mixed


def main() -> None:
    """Compares on each model, prints one report."""
    options = parser(__doc__)
    options.add_argument("--models", default="M,S", help="`M`, `S` or both")
    arguments = options.parse_args()
    names = ["S"] if arguments.quick else arguments.models.split(",")
    before = measure_ceilings(THREADS)
    compared: list[tuple[ModelShape, Workload, Comparison]] = []
    for shape in (SHAPES[name] for name in names):
        workload = mixed(shape, is_short=arguments.quick)
        systems = groups(
            with_transformers=shape is S and not arguments.quick,
            # A minute or two at each precision of M, and the promise is about one of them.
            llama_precisions=["int4"] if shape is M else PRECISIONS,
        )
        chosen = only(systems, arguments.only)
        rounds = 1 if arguments.quick else arguments.repeats
        comparison = compare(chosen, shape, [workload], rounds=rounds, limit_seconds=arguments.limit)
        compared.append((shape, workload, comparison))
    ceilings = before.best(measure_ceilings(THREADS))
    rows = [row for shape, workload, comparison in compared for row in _rows(comparison, shape, workload, ceilings)]
    aims = [aim for shape, workload, comparison in compared for aim in _aims(comparison, shape, workload)]
    notes = [note for _, _, comparison in compared for note in comparison.notes]
    print_report("mixed", rows, aims, ["flashgen-runtime", "torch"], notes=notes)
    sys.exit(bool(notes))


def _rows(comparison: Comparison, shape: ModelShape, workload: Workload, ceilings: Ceilings) -> list[Row]:
    def ceiling(precision: str) -> float | None:
        if precision not in ceilings.operations_per_second:
            return None
        return workload.num_output_tokens / ceilings.workload_seconds(shape, workload, precision)

    return comparison.rows(workload, "tokens/s", tokens_per_second, model=shape.name, ceiling=ceiling)


def _aims(comparison: Comparison, shape: ModelShape, workload: Workload) -> list[Aim]:
    if shape is M:
        promised = [
            ("mixed-bf16", "bf16", OPENVINO, "bf16", 1.5),
            ("mixed-int8", "int8", OPENVINO, "int8", 1.6),
            ("mixed-int4", "int4", OPENVINO, "int4", 1.4),
            ("mixed-int4-llama", "int4", LLAMA, "int4", 3.5),
        ]
    else:
        promised = [("mixed-S-transformers", "bf16", "transformers continuous", "fp32", 4.0)]
    return [
        aim
        for identifier, precision, peer, peer_precision, at_least in promised
        for aim in comparison.ratio_aim(
            identifier, (OURS, precision), (peer, peer_precision), workload, tokens_per_second, aim=at_least
        )
    ]


if __name__ == "__main__":
    main()
