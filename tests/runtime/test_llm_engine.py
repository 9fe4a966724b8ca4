"""The engine beside a model that follows a law: choices, the prefix cache, aborts, stops, log probabilities, masks."""

import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from flashgen_runtime.config import EngineConfig
from flashgen_runtime.engine.base import EngineOutput, EngineRequest
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.errors import ConfigError, RequestError
from tests.law_model import VOCAB_SIZE, LawModel, greedy_by_law, logits_of
from tests.runtime_models import NumberTokenizer, sizes

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


def limits_of(*, num_blocks: int = 64, **fields: Any) -> EngineConfig:
    return sizes(block_size=4, kv_cache_bytes=num_blocks * 4 * LawModel.block_bytes_per_token, **fields)


def engine_of(
    model: LawModel | None = None, *, limits: EngineConfig | None = None, eos_ids: frozenset[int] = frozenset()
) -> LLMEngine:
    return LLMEngine(
        model or LawModel(), NumberTokenizer(), sizes=limits or limits_of(), max_context=64, eos_ids=eos_ids
    )


def request_of(request_id: str, prompt_ids: list[int] = PROMPT, **params: Any) -> EngineRequest:
    return EngineRequest(request_id, prompt_ids, SamplingParams(**{"max_tokens": 8, "temperature": 0, **params}))


def run(engine: LLMEngine) -> list[EngineOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def texts_of(outputs: list[EngineOutput]) -> dict[tuple[str, int], str]:
    """The whole text of each choice."""
    texts: dict[tuple[str, int], str] = defaultdict(str)
    for output in outputs:
        texts[output.request_id, output.index] += output.text
    return dict(texts)


def text_of(token_ids: list[int]) -> str:
    return NumberTokenizer().decode(token_ids)


def alone(request: EngineRequest, **kinds: Any) -> dict[int, str]:
    """The texts of a request's choices with an engine to itself."""
    engine = engine_of(**kinds)
    engine.add_request(request)
    return {index: text for (_, index), text in texts_of(run(engine)).items()}


def test_choices_compute_their_prompt_once() -> None:
    """Choices share the full blocks of their prompt; each has a text of its own and ends on its own."""
    model = LawModel()
    engine = engine_of(model)
    engine.add_request(request_of("one", n=4, temperature=1.0, seed=3))

    outputs = run(engine)

    # Two of three blocks are full: the last two tokens are computed by each choice.
    assert model.num_computed_tokens == 8 + 4 * 2 + 4 * 7
    assert len(set(texts_of(outputs).values())) == 4
    last = [output for output in outputs if output.finish_reason]
    assert [output.open_choices for output in last] == [3, 2, 1, 0]
    assert {output.cached_tokens for output in outputs} == {0}
    assert engine.stats.blocks_used == 0


def test_choices_share_their_prompt_without_prefix_caching() -> None:
    """`prefix_caching: false` keeps requests apart; choices of one request still share."""
    model = LawModel()
    engine = engine_of(model, limits=limits_of(prefix_caching=False))
    for request_id in ("one", "two"):
        engine.add_request(request_of(request_id, n=2))

    outputs = run(engine)

    assert model.num_computed_tokens == 2 * (8 + 2 * 2 + 2 * 7)
    assert {output.cached_tokens for output in outputs} == {0}
    assert set(texts_of(outputs).values()) == {text_of(greedy_by_law(PROMPT, max_tokens=8))}


def test_first_choice_is_what_the_request_gets_alone() -> None:
    """A choice depends on the seed and its number, not on how many others there are."""
    one = alone(request_of("one", temperature=1.0, seed=11))
    three = alone(request_of("three", temperature=1.0, seed=11, n=3))

    assert three[0] == one[0]
    assert len(set(three.values())) == 3


def test_prompt_is_found_by_the_next_request() -> None:
    """A request says how much of its prompt was there already; the counters say it for all."""
    engine = engine_of()
    engine.add_request(request_of("first"))
    run(engine)
    engine.add_request(request_of("second"))

    outputs = run(engine)

    assert {output.cached_tokens for output in outputs} == {8}
    assert engine.stats.prefix_queries == 20
    assert engine.stats.prefix_hits == 8


def test_abort_ends_all_choices() -> None:
    """Aborting a request with choices and a beam search frees every block at once; unknown ids are ignored."""
    engine = engine_of()
    engine.add_request(request_of("choices", n=3))
    engine.add_request(request_of("beams", num_beams=3))
    for _ in range(3):
        engine.step()
    assert engine.stats.blocks_used > 0

    for request_id in ("choices", "beams", "nobody"):
        engine.abort(request_id)

    assert engine.stats.blocks_used == 0
    assert engine.stats.running == engine.stats.waiting == 0
    assert not engine.has_work
    assert engine.step() == []


def test_stop_string_ends_one_choice() -> None:
    """The choice whose text has the stop string ends there, the others go on."""
    free = alone(request_of("free", n=2, temperature=1.0, seed=5))
    words = free[0].split()
    assert f" {words[3]} " not in free[1]
    engine = engine_of()
    engine.add_request(request_of("stopped", n=2, temperature=1.0, seed=5, stop=(f" {words[3]}",)))

    outputs = run(engine)

    assert texts_of(outputs) == {("stopped", 0): "".join(f" {word}" for word in words[:3]), ("stopped", 1): free[1]}
    assert [output.finish_reason for output in outputs if output.finish_reason] == ["stop", "length"]


def test_stop_string_cuts_the_text_of_a_beam() -> None:
    """A beam search does not look at stop strings; the texts that it finds end before them."""
    words = alone(request_of("free", num_beams=2))[0].split()
    engine = engine_of()
    engine.add_request(request_of("stopped", num_beams=2, stop=(f" {words[4]}",)))

    output = run(engine)[-1]

    assert output.text.split() == words[: words.index(words[4])]
    assert output.finish_reason == "stop"


def test_end_of_sequence_counts_and_has_neither_text_nor_log_probability() -> None:
    """The checkpoint's end-of-sequence token ends a choice with the reason "stop"."""
    tokens = greedy_by_law(PROMPT, max_tokens=8)
    eos = tokens[3]
    engine = engine_of(eos_ids=frozenset({eos}))
    engine.add_request(request_of("one", logprobs=0))

    outputs = run(engine)

    length = tokens.index(eos)
    assert texts_of(outputs)["one", 0] == text_of(tokens[:length])
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].completion_tokens == length + 1
    assert [len(output.logprobs) for output in outputs] == [1] * length + [0]


def test_log_probabilities_are_the_models_own() -> None:
    """Each token comes with its log probability and the best in its place, with their texts."""
    engine = engine_of()
    engine.add_request(request_of("one", max_tokens=1, logprobs=3))

    (entry,) = run(engine)[0].logprobs

    logits = logits_of(PROMPT).astype(float)
    best = (-logits).argsort()[:3]
    assert entry.token_id == best[0]
    assert entry.token == f" {best[0]}"
    assert [token_id for _, token_id, _ in entry.top] == best.tolist()
    assert [text for text, _, _ in entry.top] == [f" {token_id}" for token_id in best]
    assert entry.logprob == pytest.approx(logits[best[0]] - np.log(np.exp(logits).sum()), abs=1e-5)


class OnlyOdd:
    """A `TokenMask` that allows odd token ids, and ends after `length` of them."""

    def __init__(self, length: int) -> None:
        self._left = length

    def bitmask(self) -> bytes:
        allowed = sum(1 << token_id for token_id in range(1, VOCAB_SIZE, 2)) if self._left else 0
        return allowed.to_bytes(4, "little")

    def accept(self, token_id: int) -> None:
        assert token_id % 2 or not self._left
        self._left -= 1

    def copy(self) -> "OnlyOdd":
        return OnlyOdd(self._left)


@pytest.mark.parametrize("params", [{"n": 3, "temperature": 1.0}, {"n": 2, "num_beams": 3}], ids=["choices", "beams"])
def test_token_mask_holds_for_every_choice(params: dict[str, Any]) -> None:
    """Each choice and each beam has the mask's state for itself, and ends where nothing more may come."""
    engine = engine_of(eos_ids=frozenset({2}))
    request = request_of("one", max_tokens=20, **params)
    engine.add_request(request._replace(token_mask=OnlyOdd(6)))

    outputs = run(engine)

    for text in texts_of(outputs).values():
        token_ids = [int(word) for word in text.split()]
        assert len(token_ids) == 6
        assert all(token_id % 2 for token_id in token_ids)
    assert {output.finish_reason for output in outputs} <= {None, "stop"}


class OnlyOne(OnlyOdd):
    """Allows a single completion: the token 5, again and again."""

    def bitmask(self) -> bytes:
        return (1 << 5 if self._left else 0).to_bytes(4, "little")

    def copy(self) -> "OnlyOne":
        return OnlyOne(self._left)


def test_beams_may_find_fewer_completions_than_choices() -> None:
    """Where a mask leaves a beam search nothing else, the other choices are empty and the request ends."""
    engine = engine_of(eos_ids=frozenset({2}))
    engine.add_request(request_of("one", num_beams=3, n=2, max_tokens=9)._replace(token_mask=OnlyOne(3)))

    outputs = run(engine)

    assert [output.text for output in outputs] == [" 5 5 5", ""]
    assert [output.open_choices for output in outputs] == [1, 0]


def test_model_forgets_whoever_ends() -> None:
    """The model hears of every request that gives its blocks back: finished, aborted or preempted."""
    model = LawModel()
    engine = engine_of(model)
    engine.add_request(request_of("finished", n=2))
    engine.add_request(request_of("aborted"))
    engine.step()
    engine.abort("aborted")
    run(engine)

    assert [(request.request_id, request.index) for request in model.forgotten] == [
        ("aborted", 0),
        ("finished", 0),
        ("finished", 1),
    ]


def test_what_cannot_run_is_refused() -> None:
    """A request that does not fit, or contradicts itself, is refused and leaves nothing behind."""
    engine = engine_of()
    engine.add_request(request_of("open"))

    with pytest.raises(RequestError, match="is open") as caught:
        engine.add_request(request_of("open"))
    assert caught.value.param == "request_id"
    with pytest.raises(RequestError, match="more than the context of 64"):
        engine.add_request(request_of("long", max_tokens=55))
    with pytest.raises(RequestError, match="`logprobs` cannot be had with `num_beams`") as caught:
        engine.add_request(request_of("beams", num_beams=2, logprobs=1))
    assert caught.value.param == "logprobs"
    assert engine.stats.waiting == 1


def test_cache_without_room_for_a_block_is_refused() -> None:
    """The memory must hold one block; the message has both numbers."""
    with pytest.raises(ConfigError, match="31 bytes do not hold one block of 4 tokens, which takes 32"):
        engine_of(limits=sizes(block_size=4, kv_cache_bytes=31))


@pytest.mark.parametrize("seed", range(25))
def test_texts_are_the_same_in_any_company(seed: int) -> None:
    """Sampled, greedy, several choices and beams, arriving and aborted at random: each text is the one it has alone."""
    chance = random.Random(seed)
    limits = limits_of(
        num_blocks=chance.randint(18, 30),
        max_num_seqs=chance.randint(4, 8),
        max_num_batched_tokens=chance.randint(8, 24),
        prefix_caching=chance.random() < 0.8,
        batching_mode=chance.choice(("continuous", "continuous", "static")),
    )
    engine = engine_of(limits=limits, eos_ids=frozenset({3}))
    requests = [_random_request(chance, str(number)) for number in range(chance.randint(4, 10))]
    outputs: list[EngineOutput] = []
    aborted: set[str] = set()
    for request in requests:
        engine.add_request(request)
        for _ in range(chance.choice((0, 0, 1, 4))):
            outputs += engine.step()
        if chance.random() < 0.2:
            aborted.add(chance.choice(requests).request_id)
            for request_id in aborted:
                engine.abort(request_id)

    outputs += run(engine)

    texts = texts_of(outputs)
    for request in requests:
        if request.request_id not in aborted:
            expected = alone(request, eos_ids=frozenset({3}))
            assert {index: texts[request.request_id, index] for index in range(request.params.n)} == expected
    assert engine.stats.blocks_used == 0


def _random_request(chance: random.Random, request_id: str) -> EngineRequest:
    prompt = PROMPT[: chance.randint(1, 10)] + [chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(0, 6))]
    max_tokens = chance.randint(1, 12)
    if chance.random() < 0.3:
        num_beams = chance.randint(2, 3)
        n = chance.randint(1, num_beams)
        return request_of(request_id, prompt, max_tokens=max_tokens, num_beams=num_beams, n=n)
    n = chance.choice((1, 1, 2, 5))
    temperature = chance.choice((0.0, 1.0))
    return request_of(
        request_id, prompt, max_tokens=max_tokens, n=n, temperature=temperature, seed=chance.randrange(99)
    )
