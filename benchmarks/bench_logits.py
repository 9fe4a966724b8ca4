"""How far our logits are from transformers' in fp32, beside those of transformers in bf16. Model S, random weights.

Run: python -m benchmarks.bench_logits [--models S,M]
Eight prompts, chunked together; the error of a prompt is the largest difference of its last token's logits, as a share
of the largest logit. Random weights have no structure that quantisation could spare, so int8 and int4 are worse here
than on trained models: the numbers compare formats and versions of kernels, not answers.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.engines import OURS
from benchmarks.models import SHAPES, ModelShape, model_folder
from benchmarks.ours import Flashgen, load_engine
from benchmarks.report import Aim, Row, print_report, row_of
from benchmarks.systems import THREADS
from benchmarks.workloads import Workload, prompts

MOST_BF16_ERROR = 0.01
NUM_PROMPTS = 8


class _Listening:
    """A model that keeps the logits of each request's first token."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.logits: dict[str, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, batch: Any) -> torch.Tensor:
        logits: torch.Tensor = self._model.forward(batch)
        for chunk, row in zip(batch.sampled_chunks, logits, strict=True):
            self.logits[chunk.request.request_id] = row.clone()
        return logits


def main() -> None:
    """Computes all logits in this process, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="S", help="`S`, `M` or both")
    rows: list[Row] = []
    for name in parser.parse_args().models.split(","):
        rows += _rows(SHAPES[name])
    print_report("logits", rows, _aims(rows), ["flashgen-runtime", "torch", "transformers"])


def _rows(shape: ModelShape) -> list[Row]:
    workload = prompts(shape, NUM_PROMPTS)
    reference = _transformers_logits(shape, workload, torch.float32)
    found = {("transformers", "bf16"): _transformers_logits(shape, workload, torch.bfloat16)}
    settings = {}
    for precision in ("fp32", "bf16", "int8", "int4"):
        found[OURS, precision], settings[precision] = _our_logits(shape, workload, precision)
    return [
        row_of(
            [1000 * _error(row, exact) for row, exact in zip(logits, reference, strict=True)],
            system=system,
            precision=precision,
            workload=f"{shape.name}: {workload.name}",
            metric="error of logits x 1000",
            settings=settings[precision] if system == OURS else "",
        )
        for (system, precision), logits in found.items()
    ]


@torch.inference_mode()
def _transformers_logits(shape: ModelShape, workload: Workload, dtype: torch.dtype) -> list[torch.Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder(shape), dtype=dtype)
    return [model(torch.tensor([prompt])).logits[0, -1].float() for prompt in workload.prompts]


def _our_logits(shape: ModelShape, workload: Workload, precision: str) -> tuple[list[torch.Tensor], str]:
    listening: list[_Listening] = []

    def wrap(model: Any) -> Any:
        listening.append(_Listening(model))
        return listening[0]

    loaded = load_engine(model_folder(shape), precision, THREADS, wrap=wrap)
    Flashgen(loaded).generate(workload.prompts, workload.output_lengths)
    return [listening[0].logits[str(place)] for place in range(len(workload.prompts))], loaded.settings


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).abs().max() / exact.abs().max())


def _aims(rows: Sequence[Row]) -> list[Aim]:
    return [
        Aim(
            id="logits-bf16",
            what=f"worst relative error of bf16 logits to fp32, {row.workload}",
            aim=MOST_BF16_ERROR,
            value=round(row.spread[1] / 1000, 6),
        )
        for row in rows
        if (row.system, row.precision) == (OURS, "bf16")
    ]


if __name__ == "__main__":
    main()
