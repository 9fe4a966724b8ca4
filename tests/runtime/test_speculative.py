"""Guessed tokens: texts stay what they are, with every way to guess, in any company; guesses end when they cost."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flashgen_runtime.engine.base import EngineOutput, EngineRequest
from flashgen_runtime.engine.batch import Batch
from flashgen_runtime.engine.drafting import DraftProposer
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.native_decoder import NativeDecoder, load_native
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.speculative import (
    MOST_RUNNING,
    NgramProposer,
    PredictionProposer,
    Proposer,
    Speculation,
)
from flashgen_runtime.kernels.library import current_isa
from tests.law_model import VOCAB_SIZE, LawModel, greedy_by_law, logits_of
from tests.runtime_models import NumberTokenizer, greedy_request, random_prompts, run_to_end, sizes, tiny_module

EOS = frozenset({3})


class Oracle:
    """Knows the greedy text and is wrong now and then."""

    def __init__(self, seed: int = 0, *, error_rate: float = 0.3) -> None:
        self._chance = random.Random(seed)
        self._error_rate = error_rate

    def propose(self, wishes: Mapping[Request, int]) -> dict[Request, list[int]]:
        return {request: self._guess(request, count) for request, count in wishes.items()}

    def forget(self, request: Request) -> None:
        pass

    def close(self) -> None:
        pass

    def _guess(self, request: Request, count: int) -> list[int]:
        right = greedy_by_law(request.token_ids, max_tokens=count)
        return [(token + (self._chance.random() < self._error_rate)) % VOCAB_SIZE for token in right]


class UnsureModel(LawModel):
    """Knows the law, but for one text in four."""

    def forward(self, batch: Batch) -> torch.Tensor:
        logits = super().forward(batch)
        is_wrong = (logits[:, :1] * 1000).long() % 4 == 0
        return torch.where(is_wrong, -logits, logits)


def drafter(model: LawModel | None = None, *, num_blocks: int = 40, max_num_batched_tokens: int = 16) -> DraftProposer:
    return DraftProposer(
        model or UnsureModel(),
        vocab_size=VOCAB_SIZE,
        num_blocks=num_blocks,
        block_size=4,
        max_num_batched_tokens=max_num_batched_tokens,
        max_context=64,
    )


def always(*proposers: Proposer, num_tokens: int = 4, is_tree: bool = False) -> Speculation:
    return Speculation(proposers, num_tokens=num_tokens, is_tree=is_tree, is_always=True)


def engine_of(speculation: Speculation | None, *, num_blocks: int = 64, **limits: Any) -> LLMEngine:
    kv_cache_bytes = num_blocks * 4 * LawModel.block_bytes_per_token
    limits_of = sizes(block_size=4, kv_cache_bytes=kv_cache_bytes, **limits)
    return LLMEngine(
        LawModel(), NumberTokenizer(), sizes=limits_of, max_context=64, eos_ids=EOS, speculation=speculation
    )


def run(engine: LLMEngine, requests: list[EngineRequest]) -> list[EngineOutput]:
    for request in requests:
        engine.add_request(request)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert engine.stats.blocks_used == 0
    return outputs


def answers(outputs: list[EngineOutput]) -> dict[tuple[str, int], Any]:
    """All that a caller sees of each choice, apart from when."""
    found: dict[tuple[str, int], Any] = {}
    for output in outputs:
        text, logprobs, _, _ = found.get((output.request_id, output.index), ("", [], None, 0))
        found[output.request_id, output.index] = (
            text + output.text,
            logprobs + output.logprobs,
            output.finish_reason,
            output.completion_tokens,
        )
    return found


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "seed": 7},
    "penalties and filters": {
        "temperature": 0.8,
        "seed": 8,
        "top_p": 0.9,
        "frequency_penalty": 0.7,
        "repetition_penalty": 1.2,
    },
    "log probabilities": {"temperature": 0.5, "seed": 9, "logprobs": 3},
    "stop strings": {"temperature": 0.0, "stop": (" 7 ", " 11")},
    "choices": {"temperature": 0.9, "seed": 4, "n": 3},
    "beams": {"num_beams": 2, "temperature": 0.0},
}
SPECULATIONS: dict[str, Callable[[], Speculation]] = {
    "oracle": lambda: always(Oracle()),
    "ngram": lambda: always(NgramProposer()),
    "prediction": lambda: always(PredictionProposer()),
    "draft": lambda: always(drafter()),
    "tree": lambda: always(Oracle(1), drafter(), Oracle(2), num_tokens=3, is_tree=True),
}


@pytest.mark.parametrize("speculation", SPECULATIONS.values(), ids=SPECULATIONS.keys())
@pytest.mark.parametrize("limits", [{}, {"num_blocks": 14, "max_num_batched_tokens": 16}], ids=["roomy", "tight"])
def test_answers_are_the_same_with_and_without_guesses(
    speculation: Callable[[], Speculation], limits: dict[str, Any]
) -> None:
    """All kinds of requests together: text, log probabilities, reasons, counts; preemptions where it is tight."""
    requests = []
    for number, (name, params) in enumerate(KINDS.items()):
        prompt = [5, 6, 5, 6, 5, 6, number, 5, 6]
        predicted = greedy_by_law(prompt, max_tokens=12)
        predicted[5:6] = [1, 2]
        full = SamplingParams(**{"max_tokens": 14, **params})
        requests.append(EngineRequest(name, prompt, full, predicted_ids=predicted))

    expected = answers(run(engine_of(None, **limits), requests))
    engine = engine_of(speculation(), **limits)

    assert answers(run(engine, requests)) == expected
    assert engine.stats.proposed > 0


def test_right_guesses_save_steps() -> None:
    """Four right guesses a step bring five tokens a step, and the counters say so."""
    prompt = [5, 6, 7]
    request = EngineRequest("one", prompt, SamplingParams(max_tokens=16, temperature=0))
    engine = LLMEngine(
        LawModel(),
        NumberTokenizer(),
        sizes=sizes(block_size=4, kv_cache_bytes=4096),
        max_context=64,
        speculation=always(Oracle(error_rate=0)),
    )

    outputs = run(engine, [request])

    assert "".join(output.text for output in outputs) == NumberTokenizer().decode(greedy_by_law(prompt, max_tokens=16))
    # The prompt gives one token, three steps five each.
    assert (engine.stats.steps, engine.stats.proposed, engine.stats.accepted) == (4, 12, 12)


@pytest.mark.parametrize("kind", SPECULATIONS)
def test_sampled_tokens_have_the_distribution_of_the_model(kind: str) -> None:
    """Second tokens of 2,000 seeds, each verified behind a guess: chi-square against the law's own probabilities."""
    prompt = [5, 6, 7, 8]
    requests = [
        EngineRequest(str(seed), prompt, SamplingParams(max_tokens=3, temperature=1.0, seed=seed, logprobs=0))
        for seed in range(2000)
    ]
    first = probabilities(prompt)
    expected = 2000 * sum(
        first[token] * probabilities([*prompt, token]) for token in range(VOCAB_SIZE) if token not in EOS
    )

    engine = engine_of(SPECULATIONS[kind](), num_blocks=400)
    found = np.zeros(VOCAB_SIZE)
    for _, logprobs, *_ in answers(run(engine, requests)).values():
        if len(logprobs) > 1:
            found[logprobs[1].token_id] += 1
    # Tokens that end a text have no log probability; they are counted in none of the two.
    found, expected = np.delete(found, list(EOS)), np.delete(expected, list(EOS))

    # 49.7 is the 0.999 quantile for 23 degrees of freedom; there are 22.
    assert ((found - expected) ** 2 / expected).sum() < 49.7


def probabilities(token_ids: list[int]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Of the next token, by the law at temperature 1."""
    powers = np.exp(logits_of(token_ids).astype(np.float64))
    return powers / powers.sum()


@pytest.mark.parametrize("seed", range(12))
def test_guesses_keep_to_budget_and_blocks_whatever_comes_when(seed: int) -> None:
    """Random arrivals and aborts on a small pool: a step never exceeds its budget, everything is freed at the end."""
    chance = random.Random(seed)
    budget = chance.randint(6, 20)
    proposers = [Oracle(seed), drafter(num_blocks=chance.randint(2, 20), max_num_batched_tokens=budget)]
    speculation = always(*chance.sample(proposers, 2), num_tokens=chance.randint(1, 5), is_tree=chance.random() < 0.7)
    engine = engine_of(speculation, num_blocks=chance.randint(10, 16), max_num_batched_tokens=budget, max_num_seqs=5)
    expected, found, aborted = {}, {}, set()
    for number in range(10):
        prompt = [chance.choice((5, 6)) for _ in range(chance.randint(1, 16))]
        name, max_tokens = str(number), chance.randint(1, 20)
        engine.add_request(EngineRequest(name, prompt, SamplingParams(max_tokens=max_tokens, temperature=0)))
        tokens = greedy_by_law(prompt, max_tokens=max_tokens, eos_ids=EOS)
        expected[name] = NumberTokenizer().decode(token for token in tokens if token not in EOS)
        found[name] = ""
    while engine.has_work:
        before = engine._model.num_computed_tokens
        for output in engine.step():
            found[output.request_id] += output.text
        assert engine._model.num_computed_tokens - before <= budget
        if chance.random() < 0.1:
            name = str(chance.randrange(10))
            engine.abort(name)
            aborted.add(name)

    assert engine.stats.blocks_used == 0
    assert {name: text for name, text in found.items() if name not in aborted} == {
        name: text for name, text in expected.items() if name not in aborted
    }


@pytest.mark.skipif(current_isa() is None, reason="torch's products depend on the number of rows")
@pytest.mark.parametrize("kind", ["ngram", "prediction", "draft", "tree"])
def test_our_kernels_give_the_same_text_with_guesses(tmp_path: Path, kind: str) -> None:
    """A native model, requests together, greedy: verified rows are the same bits as single ones."""
    tiny_module("qwen3").save_pretrained(tmp_path)

    def model() -> NativeDecoder:
        return load_native(tmp_path, dtype="auto", quantization=None, kv_cache_dtype="auto", max_num_batched_tokens=512)

    def itself() -> DraftProposer:
        found = model()
        return DraftProposer(
            found,
            vocab_size=found.vocab_size,
            num_blocks=64,
            block_size=32,
            max_num_batched_tokens=512,
            max_context=512,
        )

    def texts(speculation: Speculation | None, predictions: dict[str, str]) -> dict[str, str]:
        engine = LLMEngine(model(), NumberTokenizer(), sizes=sizes(), max_context=512, speculation=speculation)
        for number, prompt in enumerate(random_prompts(5, longest=40)):
            predicted = NumberTokenizer().encode(predictions.get(str(number), ""), add_special_tokens=False)
            request = greedy_request(str(number), prompt * 2, max_tokens=40)
            engine.add_request(request._replace(predicted_ids=predicted))
        found = run_to_end(engine)
        assert speculation is None or engine.stats.accepted > 0
        return found

    expected = texts(None, {})
    guessing = {
        "ngram": lambda: always(NgramProposer()),
        "prediction": lambda: always(PredictionProposer()),
        "draft": lambda: always(itself()),
        "tree": lambda: always(NgramProposer(), itself(), is_tree=True),
    }
    assert texts(guessing[kind](), expected) == expected


def test_guesses_end_when_they_are_wrong_and_cost() -> None:
    """A request whose guesses are always wrong hardly makes any; with many running there are none."""
    speculation = Speculation([Oracle(error_rate=1)], num_tokens=4)
    for rows, seconds in ((1, 1.0), (5, 1.5)):
        speculation.note_step(rows, seconds)
    request = request_of([5])
    rows = 0
    for _ in range(400):
        if count := speculation.wish(request, max_tokens=8, max_rows=8, num_running=1):
            rows += count
            speculation.note_result(request, num_rows=count, longest=count, num_accepted=0)
        request.token_ids.append(5)

    assert 0 < rows < 20
    assert not speculation.may_pay(MOST_RUNNING + 1)


def test_guesses_are_as_long_as_they_pay() -> None:
    """Where guesses are right they become long, unless rows or the guessing itself cost too much."""

    def length(step_of_five: float, guessing: float) -> int:
        speculation = Speculation([Oracle()], num_tokens=4)
        request = request_of([5])
        for _ in range(20):
            speculation.note_step(1, 1.0)
            speculation.note_step(5, step_of_five)
            speculation._costs.note_guesses(4, 4 * guessing)
            speculation.note_result(request, num_rows=4, longest=4, num_accepted=3)
        return speculation.wish(request, max_tokens=9, max_rows=9, num_running=1)

    assert (length(1.3, 0), length(1.3, 0.1), length(5, 0), length(1.3, 2)) == (4, 4, 1, 1)


def test_a_prediction_is_followed_again_behind_a_mismatch() -> None:
    """Two tokens of the completion replaced one of the prediction: the guess goes on at the right place."""
    request = request_of([1, 1, 10, 11, 99, 98, 13, 14], num_prompt_tokens=2)
    request.predicted_ids = [10, 11, 12, 13, 14, 15, 16, 17]

    assert PredictionProposer().propose({request: 2}) == {request: [15, 16]}


def test_a_prediction_is_followed_behind_a_token_in_the_place_of_another() -> None:
    """The newest token is not the predicted one: the guess goes on behind that."""
    request = request_of([1, 1, 10, 11, 99], num_prompt_tokens=2)
    request.predicted_ids = [10, 11, 12, 13, 14]

    assert PredictionProposer().propose({request: 2}) == {request: [13, 14]}


def test_what_followed_the_latest_equal_end_is_guessed() -> None:
    """The longest end that stood in the text before wins, however the text grew; nothing where none did."""
    proposer = NgramProposer()
    request = request_of([1, 2, 3, 9, 2, 3, 8, 1, 2, 3])
    fresh = request_of([1, 2, 3])

    assert proposer.propose({request: 2, fresh: 2}) == {request: [9, 2]}
    request.token_ids += [5, 2, 3]
    assert proposer.propose({request: 3}) == {request: [5, 2, 3]}


def test_a_small_model_reads_long_prompts_in_parts_and_gives_its_blocks_back() -> None:
    """A prompt of 40 tokens by 16 a step; what is kept of a request that wants nothing makes room for another."""
    proposer = drafter(LawModel(), num_blocks=12)
    first, second = request_of([7] * 40), request_of([8] * 30)

    assert [proposer.propose({first: 3}) for _ in range(4)] == [
        {},
        {},
        {},
        {first: greedy_by_law([7] * 40, max_tokens=3)},
    ]
    assert [proposer.propose({second: 3}) for _ in range(3)] == [
        {},
        {},
        {second: greedy_by_law([8] * 30, max_tokens=3)},
    ]
    proposer.forget(first)
    proposer.forget(second)
    assert proposer.num_free_blocks == 12


def test_a_small_model_follows_sampled_texts() -> None:
    """The same model guesses sampled tokens as surely as greedy ones: it draws with the same random numbers."""
    params = SamplingParams(max_tokens=30, temperature=1.2, seed=12, top_k=9, frequency_penalty=0.4)
    engine = engine_of(always(drafter(LawModel())))

    run(engine, [EngineRequest("one", [5, 6, 7], params)])

    assert engine.stats.accepted == engine.stats.proposed > 8


def test_a_small_model_is_closed_with_the_large_one() -> None:
    """Its weights and cache are given back."""
    model = LawModel()
    engine = engine_of(always(drafter(model)))

    engine.close()

    assert model.is_closed


def test_tokens_that_a_small_model_does_not_know_are_not_given_to_it() -> None:
    """A vocabulary that is padded less: no guess, and no index out of range."""
    assert drafter().propose({request_of([5, VOCAB_SIZE]): 3}) == {}


def test_a_tree_goes_on_with_whichever_guess_is_right() -> None:
    """Two guessers that are each wrong half of the time accept more together than the better one alone."""
    request = EngineRequest("one", [9, 9], SamplingParams(max_tokens=40, temperature=0))

    def steps(*seeds: int) -> int:
        oracles = [Oracle(seed, error_rate=0.5) for seed in seeds]
        engine = engine_of(always(*oracles, is_tree=True), num_blocks=100)
        run(engine, [request])
        return engine.stats.steps

    assert steps(1, 2) < min(steps(1), steps(2))


def request_of(token_ids: list[int], *, num_prompt_tokens: int = 1) -> Request:
    return Request(
        request_id="one",
        params=SamplingParams(max_tokens=400, temperature=0),
        token_ids=token_ids,
        num_prompt_tokens=num_prompt_tokens,
        seed=0,
        eos_ids=EOS,
    )
