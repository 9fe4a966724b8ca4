"""What guessing gains: each kind of guess against the same engine without, in pairs that take turns.

Run: python -m benchmarks.bench_speculative [--quick] [--only CASE,…] [--pairs N]
The sample model continues files of the standard library that it was not trained on, with its trained drafters. Model M
has random weights, so its guesses are predictions made from its own answers: right, wrong, or wrong in one of ten
positions, with which three of four guessed tokens are accepted. Texts with and without guesses are equal, or the
benchmark fails. A pair is one run of each, the first of them by turns; a gain is the median of the pairs' ratios.
"""

import argparse
import random
import runpy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.models import ROOT, M, model_folder
from benchmarks.ours import MAX_CONTEXT, SIZES, load_engine, model_config
from benchmarks.report import Aim, Row, print_report, row_of
from benchmarks.systems import THREADS
from benchmarks.workloads import batch
from flashgen_runtime.engine.base import EngineRequest
from flashgen_runtime.engine.drafting import DraftProposer
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.paths import load_causal_model
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.speculative import NgramProposer, PredictionProposer, Proposer, Speculation
from flashgen_runtime.loader.tokenizer import load_tokenizer

SAMPLES = ROOT / "samples" / "models"
CODER, DRAFTERS = SAMPLES / "stdlib-coder", (SAMPLES / "stdlib-drafter", SAMPLES / "stdlib-drafter-narrow")

CODER_VOCABULARY = 3072

PAIRS, QUICK_PAIRS = 15, 2
PROMPT_TOKENS, OUTPUT_TOKENS = 256, 64
NUM_FILES = 6
SEED = 3


class Prompt(NamedTuple):
    """One request of a case; what is predicted is made from the answer without guesses."""

    ids: list[int]
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of guess on one kind of text."""

    name: str
    folder: Callable[[], Path]
    precision: str
    prompts: Callable[[Path], list[Prompt]]
    speculation: Callable[[], Speculation]

    # How many of the positions of what is predicted are right; `None` predicts nothing.
    right: float | None = None

    # Requests that run together; the others follow when these have ended.
    num_together: int = 1
    temperature: float = 0.0

    # Of what is promised about the speed against plain.
    aim: float | None = None


@dataclass(slots=True)
class Measured:
    """All runs of one case."""

    gains: list[float] = field(default_factory=list)
    tokens_per_step: list[float] = field(default_factory=list)
    acceptances: list[float] = field(default_factory=list)


def main() -> None:
    """Runs the cases one after the other, prints the report."""
    arguments = _arguments()
    chosen = [case for case in _cases() if not arguments.only or case.name in arguments.only.split(",")]
    rows: list[Row] = []
    aims: list[Aim] = []
    for case in chosen:
        measured = _measure(case, QUICK_PAIRS if arguments.quick else arguments.pairs)
        rows += _rows(case, measured)
        if case.aim is not None and not arguments.quick:
            rounded = rows[-3].value
            what = f"{case.name}: speed over the same engine without guesses, median of {len(measured.gains)} pairs"
            aims.append(
                Aim(
                    id=f"speculative-{case.name.replace(' ', '-')}",
                    what=what,
                    aim=case.aim,
                    value=rounded,
                    at_most=False,
                )
            )
    print_report("speculative", rows, aims, ["flashgen-runtime", "torch"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PAIRS} pairs")
    parser.add_argument("--only", default="", help="cases, by name")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    return parser.parse_args()


def _cases() -> list[Case]:
    def coder(name: str, proposers: Callable[[], list[Proposer]], **more: object) -> Case:
        is_tree = name.startswith("tree")
        return Case(
            name=name,
            folder=lambda: CODER,
            precision="bf16",
            prompts=_held_out,
            speculation=lambda: Speculation(proposers(), num_tokens=4, is_tree=is_tree),
            **more,  # type: ignore[arg-type]
        )

    def predicted(name: str, precision: str, right: float, **more: object) -> Case:
        return Case(
            name=f"{name} {precision}",
            folder=lambda: model_folder(M),
            precision=precision,
            prompts=_random,
            speculation=lambda: Speculation([PredictionProposer()], num_tokens=4),
            right=right,
            **more,  # type: ignore[arg-type]
        )

    return [
        coder("draft", lambda: [_drafter(DRAFTERS[0])]),
        coder("draft sampled", lambda: [_drafter(DRAFTERS[0])], temperature=0.8),
        coder("tree", lambda: [_drafter(folder) for folder in DRAFTERS]),
        coder("n-gram on code", lambda: [NgramProposer()]),
        Case(
            name="n-gram on text that repeats",
            folder=lambda: model_folder(M),
            precision="bf16",
            prompts=_random,
            speculation=lambda: Speculation([NgramProposer()], num_tokens=4),
        ),
        *(
            case
            for precision in ("bf16", "int8")
            for case in (
                predicted("prediction right", precision, 1.0),
                predicted("prediction 9 of 10 right", precision, 0.9, aim=1.6),
                predicted("prediction wrong", precision, 0.0, aim=0.97),
                predicted("32 requests", precision, 0.75, num_together=32, aim=0.97),
            )
        ),
        coder("prediction wrong small model", lambda: [PredictionProposer()], right=0.0, aim=0.97),
    ]


def _drafter(folder: Path) -> DraftProposer:
    block_size = SIZES.block_size
    model = load_causal_model(folder, model_config(folder, "bf16"), SIZES)
    return DraftProposer(
        model,
        vocab_size=model.vocab_size,
        num_blocks=4 * MAX_CONTEXT // block_size,
        block_size=block_size,
        max_num_batched_tokens=SIZES.max_num_batched_tokens,
        max_context=MAX_CONTEXT,
    )


def _held_out(folder: Path) -> list[Prompt]:
    """The middles of files that nobody was trained on."""
    corpus = runpy.run_path(str(SAMPLES / "stdlib_corpus.py"))["read_corpus"]()
    tokenizer = load_tokenizer(folder, vocab_size=CODER_VOCABULARY)
    texts = [corpus.texts[name] for name in random.Random(SEED).sample(corpus.held_out, NUM_FILES)]
    ids = [tokenizer.encode(text, add_special_tokens=True) for text in texts]
    return [Prompt(each[len(each) // 2 :][:PROMPT_TOKENS], OUTPUT_TOKENS) for each in ids]


def _random(_: Path) -> list[Prompt]:
    return [Prompt(ids, OUTPUT_TOKENS) for ids in batch(M, 1, prompt=PROMPT_TOKENS, output=OUTPUT_TOKENS).prompts]


def _measure(case: Case, num_pairs: int) -> Measured:
    folder = case.folder()
    plain = load_engine(folder, case.precision, THREADS).engine
    guessing = load_engine(folder, case.precision, THREADS, speculation=case.speculation()).engine
    prompts = case.prompts(folder)
    if case.num_together > 1:
        prompts = [
            Prompt([*prompt.ids[place:], *prompt.ids[:place]], prompt.max_tokens)
            for prompt in prompts
            for place in range(case.num_together)
        ]
    answers = _run(plain, case, prompts, [[]] * len(prompts), with_ids=True)
    predictions = [_predicted(ids, case.right, number) for number, ids in enumerate(answers.token_ids)]
    _run(guessing, case, prompts, predictions)
    num_tokens = sum(len(ids) for ids in answers.token_ids)
    measured = Measured()
    for number in range(num_pairs):
        order = (plain, guessing) if number % 2 else (guessing, plain)
        before = guessing.stats
        runs = {id(engine): _run(engine, case, prompts, predictions) for engine in order}
        without, with_guesses, after = runs[id(plain)], runs[id(guessing)], guessing.stats
        if with_guesses.texts != answers.texts or without.texts != answers.texts:
            raise SystemExit(f"{case.name}: another text with guesses than without")
        measured.gains.append(without.seconds / with_guesses.seconds)
        measured.tokens_per_step.append(num_tokens / case.num_together / (after.steps - before.steps))
        proposed = after.proposed - before.proposed
        measured.acceptances.append((after.accepted - before.accepted) / proposed if proposed else 0.0)
    plain.close()
    guessing.close()
    return measured


@dataclass(frozen=True, slots=True)
class Run:
    """All requests of a case, answered once: the seconds of steps behind prompts, and texts."""

    seconds: float
    texts: list[str]

    # Only where they were asked for.
    token_ids: list[list[int]]


def _run(
    engine: LLMEngine,
    case: Case,
    prompts: Sequence[Prompt],
    predictions: Iterable[list[int]],
    *,
    with_ids: bool = False,
) -> Run:
    requests = [
        EngineRequest(
            str(number),
            prompt.ids,
            SamplingParams(
                max_tokens=prompt.max_tokens,
                temperature=case.temperature,
                seed=number,
                logprobs=0 if with_ids else None,
            ),
            predicted_ids=prediction,
        )
        for number, (prompt, prediction) in enumerate(zip(prompts, predictions, strict=True))
    ]
    texts = [""] * len(requests)
    token_ids: list[list[int]] = [[] for _ in requests]
    seconds = 0.0
    for start in range(0, len(requests), case.num_together):
        together = requests[start : start + case.num_together]
        for request in together:
            engine.add_request(request)
        started: float | None = None
        waiting = {request.request_id for request in together}
        while engine.has_work:
            for output in engine.step():
                place = int(output.request_id)
                texts[place] += output.text
                token_ids[place] += [each.token_id for each in output.logprobs]
                waiting.discard(output.request_id)
            if started is None and not waiting:
                started = time.perf_counter()
        assert started is not None, "every request has a first token"
        seconds += time.perf_counter() - started
    return Run(seconds, texts, token_ids)


def _predicted(answer: list[int], right: float | None, seed: int) -> list[int]:
    """An answer with wrong tokens in between."""
    if right is None:
        return []
    draw = random.Random(seed)
    return [token if draw.random() < right else token ^ 1 for token in answer]


def _rows(case: Case, measured: Measured) -> list[Row]:
    metrics = {
        "speed over plain": measured.gains,
        "tokens per step": measured.tokens_per_step,
        "accepted share": measured.acceptances,
    }
    name = "sample model" if case.folder() == CODER else "M"
    return [
        row_of(values, system=name, precision=case.precision, workload=case.name, metric=metric)
        for metric, values in metrics.items()
    ]


if __name__ == "__main__":
    main()
