"""Guessed tokens: texts stay what they are, with every way to guess, in any company; guesses end when they cost."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flashgen_runtime.engine.base import EngineOutput, EngineRequest
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.native_decoder import load_native
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
from tests.law_model import VOCAB_SIZE, LawModel, greedy_by_law
from tests.runtime_models import NumberTokenizer, greedy_request, random_prompts, run_to_end, sizes, tiny_module

EOS = frozenset({3})


class Oracle:
    """Knows the greedy text and is wrong now and then."""

    def __init__(self, seed: int = 0, *, error_rate: float = 0.3) -> None:
        self._chance = random.Random(seed)
        self._error_rate = error_rate

    def propose(self, request: Request, count: int) -> list[int]:
        right = greedy_by_law(request.token_ids, max_tokens=count)
        return [(token + (self._chance.random() < self._error_rate)) % VOCAB_SIZE for token in right]


def always(*proposers: Proposer, num_tokens: int = 4) -> Speculation:
    return Speculation(proposers, num_tokens=num_tokens, is_always=True)


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
PROPOSERS: dict[str, Proposer] = {
    "oracle": Oracle(),
    "ngram": NgramProposer(),
    "prediction": PredictionProposer(),
}


@pytest.mark.parametrize("proposer", PROPOSERS.values(), ids=PROPOSERS.keys())
@pytest.mark.parametrize("limits", [{}, {"num_blocks": 14, "max_num_batched_tokens": 9}], ids=["roomy", "tight"])
def test_answers_are_the_same_with_and_without_guesses(proposer: Proposer, limits: dict[str, Any]) -> None:
    """All kinds of requests together: text, log probabilities, reasons, counts; preemptions where it is tight."""
    requests = []
    for number, (name, params) in enumerate(KINDS.items()):
        prompt = [5, 6, 5, 6, 5, 6, number, 5, 6]
        predicted = greedy_by_law(prompt, max_tokens=12)
        predicted[5:6] = [1, 2]
        full = SamplingParams(**{"max_tokens": 14, **params})
        requests.append(EngineRequest(name, prompt, full, predicted_ids=predicted))

    expected = answers(run(engine_of(None, **limits), requests))
    engine = engine_of(always(proposer), **limits)

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


def test_sampled_tokens_have_the_distribution_of_the_model() -> None:
    """Second tokens of 2,000 seeds behind a guess: equal to those without one, hence of the same distribution."""
    prompt = [5, 6, 7, 8]
    requests = [
        EngineRequest(str(seed), prompt, SamplingParams(max_tokens=3, temperature=1.0, seed=seed))
        for seed in range(2000)
    ]

    def counts(speculation: Speculation | None) -> Counter[str]:
        found = answers(run(engine_of(speculation, num_blocks=400), requests))
        return Counter(text for text, *_ in found.values())

    assert counts(always(Oracle())) == counts(None)


@pytest.mark.parametrize("seed", range(12))
def test_guesses_keep_to_budget_and_blocks_whatever_comes_when(seed: int) -> None:
    """Random arrivals and aborts on a small pool: a step never exceeds its budget, everything is freed at the end."""
    chance = random.Random(seed)
    budget = chance.randint(6, 20)
    speculation = always(Oracle(seed), num_tokens=chance.randint(1, 7))
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
@pytest.mark.parametrize("proposer", [NgramProposer(), PredictionProposer()], ids=["ngram", "prediction"])
def test_our_kernels_give_the_same_text_with_guesses(tmp_path: Path, proposer: Proposer) -> None:
    """A native model, requests together, greedy: verified rows are the same bits as single ones."""
    tiny_module("qwen3").save_pretrained(tmp_path)

    def texts(speculation: Speculation | None, predictions: dict[str, str]) -> dict[str, str]:
        model = load_native(
            tmp_path, dtype="auto", quantization=None, kv_cache_dtype="auto", max_num_batched_tokens=512
        )
        engine = LLMEngine(model, NumberTokenizer(), sizes=sizes(), max_context=512, speculation=speculation)
        for number, prompt in enumerate(random_prompts(5, longest=40)):
            predicted = NumberTokenizer().encode(predictions.get(str(number), ""), add_special_tokens=False)
            request = greedy_request(str(number), prompt * 2, max_tokens=40)
            engine.add_request(request._replace(predicted_ids=predicted))
        found = run_to_end(engine)
        assert speculation is None or engine.stats.accepted > 0
        return found

    expected = texts(None, {})
    assert texts(always(proposer), expected) == expected


def test_guesses_end_when_they_are_wrong_and_cost() -> None:
    """A request whose guesses are always wrong hardly makes any; with many running there are none."""
    speculation = Speculation([Oracle(error_rate=1)], num_tokens=4)
    for rows, seconds in ((1, 1.0), (5, 1.5)):
        speculation.note_step(rows, seconds)
    request = Request(
        request_id="one",
        params=SamplingParams(max_tokens=400),
        token_ids=[5],
        num_prompt_tokens=1,
        seed=0,
        eos_ids=EOS,
    )
    tries = 0
    for _ in range(400):
        if proposed := speculation.propose(request, limit=8, num_running=1):
            tries += 1
            speculation.note_result(request, num_proposed=len(proposed), num_accepted=0)
        request.token_ids.append(5)

    assert 0 < tries < 40
    assert not speculation.may_pay(MOST_RUNNING + 1)


def test_a_prediction_is_followed_again_behind_a_mismatch() -> None:
    """Two tokens of the completion replaced one of the prediction: the guess goes on at the right place."""
    request = Request(
        request_id="one",
        params=SamplingParams(max_tokens=20),
        token_ids=[1, 1, 10, 11, 99, 98, 13, 14],
        num_prompt_tokens=2,
        seed=0,
        eos_ids=EOS,
        predicted_ids=[10, 11, 12, 13, 14, 15, 16, 17],
    )

    assert PredictionProposer().propose(request, 2) == [15, 16]
