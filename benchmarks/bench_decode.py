"""Tokens per second of decoding at batch 1, 4, 16, 32 and 64: ours, OpenVINO and llama.cpp at bf16, int8 and int4.

Run: python -m benchmarks.bench_decode [--quick] [--only SYSTEM,…] [--repeats N]
Equal requests, all submitted at once; the clock starts when every request has its first token, so prefill is left out.
The ceiling is the larger of two bounds of a step: weights, keys and values over the measured bandwidth, or operations
over the rate of a large matrix product. "flashgen paged" is our engine with transformers' class instead of our decoder.
"""

import sys

from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.comparison import Comparison, compare
from benchmarks.engines import OURS, OURS_PAGED, PRECISIONS, groups, only, ours_paged, parser
from benchmarks.models import M, ModelShape, S
from benchmarks.protocol import Generated
from benchmarks.report import Aim, Row, print_report
from benchmarks.systems import THREADS, System
from benchmarks.workloads import Workload, batch

# Requests, prompt and output tokens of each: the fewer steps, the longer each of them takes.
SIZES = [(1, 64, 128), (4, 16, 48), (16, 16, 24), (32, 16, 16), (64, 16, 12)]
QUICK_SIZES = [(1, 32, 32), (4, 16, 16), (16, 16, 8)]
FLOOR_SHARES = {"bf16": 90.0, "int8": 80.0, "int4": 65.0}


def main() -> None:
    """Compares on model M, or S if it is to be quick."""
    arguments = parser(__doc__).parse_args()
    shape, sizes = (S, QUICK_SIZES) if arguments.quick else (M, SIZES)
    workloads = [batch(shape, size, prompt=prompt, output=output) for size, prompt, output in sizes]
    before = measure_ceilings(THREADS)
    paged = System(OURS_PAGED, "int8", ours_paged)
    systems = [[*group, paged] if paged.precision == group[0].precision else group for group in groups()]
    chosen = only(systems, arguments.only)
    rounds = 1 if arguments.quick else arguments.repeats
    comparison = compare(chosen, shape, workloads, rounds=rounds, limit_seconds=arguments.limit)
    ceilings = before.best(measure_ceilings(THREADS))
    rows = [row for workload in workloads for row in _rows(comparison, shape, workload, ceilings)]
    print_report("decode", rows, _aims(rows, shape), ["flashgen-runtime", "torch"], notes=comparison.notes)
    sys.exit(bool(comparison.notes))


def _rows(comparison: Comparison, shape: ModelShape, workload: Workload, ceilings: Ceilings) -> list[Row]:
    prompt, output = len(workload.prompts[0]), workload.output_lengths[0]
    context = prompt + output / 2

    def ceiling(precision: str) -> float:
        return ceilings.decode_tokens_per_second(shape, len(workload.prompts), context, precision)

    return comparison.rows(workload, "decode tokens/s", _decode_rate, model=shape.name, ceiling=ceiling)


def _decode_rate(generated: Generated) -> float:
    return generated.decode_tokens / generated.decode_seconds


def _aims(rows: list[Row], shape: ModelShape) -> list[Aim]:
    """At batch 1 the ceiling is the bandwidth."""
    if shape is not M:
        return []
    return [
        Aim(
            id=f"decode-1-{row.precision}",
            what=f"percent of the bandwidth floor that {row.precision} reaches at batch 1",
            aim=FLOOR_SHARES[row.precision],
            value=round(100 * row.value / row.ceiling, 1),
            at_most=False,
        )
        for row in rows
        if row.system == OURS and row.workload.endswith("batch 1") and row.precision in PRECISIONS and row.ceiling
    ]


if __name__ == "__main__":
    main()
