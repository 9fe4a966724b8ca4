"""What precision costs in answers: perplexity and top-1 agreement with float32, on text that nobody was trained on.

Run: python -m benchmarks.bench_quality [--quick]
The trained sample model, whose checkpoint is bf16, on the beginnings of the standard library's files that were held out
of its training: in our own precisions, and from checkpoints that are quantised already in each way that is loaded.
Those are written here by plain rounding to nearest, so they stand for the formats and not for the tools' calibration.
"""

import argparse
import runpy
import tempfile
from array import array
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from benchmarks.models import ROOT
from benchmarks.ours import KV_CACHE_DTYPES, SIZES, model_config
from benchmarks.report import Row, print_report, row_of
from benchmarks.systems import THREADS
from flashgen_runtime.engine.batch import build_batch
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.paths import load_causal_model
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.scheduler import Chunk
from flashgen_runtime.kernels.library import set_num_threads
from flashgen_runtime.loader.tokenizer import load_tokenizer
from tests.quantized_checkpoints import KINDS, write_quantized

SAMPLES = ROOT / "samples" / "models"
CODER = SAMPLES / "stdlib-coder"
REFERENCE = "fp32"
PRECISIONS = (REFERENCE, "bf16", "int8", "int4")

# Tokens of one file: a forward pass takes them all.
WINDOW = 512
QUICK_FILES = 2


class Quality(NamedTuple):
    """Of one file."""

    # [T - 1]: of each token behind the first, by those before it.
    log_probs: torch.Tensor

    # [T - 1]: the likeliest token in its place.
    best: torch.Tensor


def main() -> None:
    """Runs each model in turn, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_FILES} files")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    set_num_threads(THREADS)
    texts = _held_out()[: QUICK_FILES if arguments.quick else None]
    reference = _qualities(CODER, REFERENCE, texts)
    rows = [row for precision in PRECISIONS for row in _rows(CODER, precision, "our own", texts, reference)]
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / kind.name
            write_quantized(CODER, path, kind)
            rows += _rows(path, "auto", kind.name, texts, reference)
    print_report("quality", rows, [], ["flashgen-runtime", "torch"])


def _held_out() -> list[list[int]]:
    corpus = runpy.run_path(str(SAMPLES / "stdlib_corpus.py"))["read_corpus"]()
    tokenizer = load_tokenizer(CODER, vocab_size=3072)
    texts = [tokenizer.encode(corpus.texts[name], add_special_tokens=True) for name in corpus.held_out]
    return [text[:WINDOW] for text in texts]


def _rows(folder: Path, precision: str, system: str, texts: list[list[int]], reference: list[Quality]) -> list[Row]:
    found = _qualities(folder, precision, texts)
    log_probs = torch.cat([each.log_probs for each in found])
    same = torch.cat([one.best == other.best for one, other in zip(found, reference, strict=True)])
    label = "" if precision == "auto" else precision
    return [
        row_of([value], system=system, precision=label, workload="held-out code", metric=metric)
        for metric, value in (
            ("perplexity", float((-log_probs.mean()).exp())),
            ("top-1 as in fp32, %", 100 * float(same.float().mean())),
        )
    ]


def _qualities(folder: Path, precision: str, texts: list[list[int]]) -> list[Quality]:
    sizes = msgspec.structs.replace(SIZES, kv_cache_dtype=KV_CACHE_DTYPES.get(precision, "auto"))
    config = model_config(folder, "bf16" if precision == "auto" else precision)
    if precision == "auto":
        config = msgspec.structs.replace(config, dtype="auto")
    model = load_causal_model(folder, config, sizes)
    model.allocate_cache(-(-WINDOW // sizes.block_size), sizes.block_size)
    try:
        return [_quality(model, text, block_size=sizes.block_size) for text in texts]
    finally:
        model.close()


def _quality(model: CausalModel, token_ids: list[int], *, block_size: int) -> Quality:
    request = Request(
        request_id="text",
        params=SamplingParams(max_tokens=1),
        token_ids=token_ids[:1],
        num_prompt_tokens=1,
        seed=0,
        eos_ids=frozenset(),
        # As guesses all tokens have their logits from one pass.
        proposed_ids=token_ids[1:],
        block_table=array("q", range(-(-len(token_ids) // block_size))),
    )
    batch = build_batch([Chunk(request, len(token_ids))], block_size=block_size, device=model.device)
    log_probs = model.forward(batch)[:-1].log_softmax(dim=-1)
    expected = torch.tensor(token_ids[1:]).unsqueeze(1)
    return Quality(log_probs.gather(1, expected).squeeze(1).clone(), log_probs.argmax(dim=-1))


if __name__ == "__main__":
    main()
