"""Beam search gives what transformers' `generate` gives, beside other requests and whatever happens to its blocks."""

from typing import Any, NamedTuple

import pytest
import torch

from flashgen_runtime.config import EngineConfig
from flashgen_runtime.engine.base import EngineOutput, EngineRequest
from flashgen_runtime.engine.batch import Batch
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.sampling_params import SamplingParams
from tests.law_model import LawModel, logits_of
from tests.runtime_models import (
    VOCAB_SIZE,
    NumberTokenizer,
    greedy_request,
    kv_cache_bytes,
    outputs_by_step,
    random_prompts,
    sizes,
    tiny_engine,
    tiny_module,
)

MAX_TOKENS = 14


class UncachedModel(LawModel):
    """A transformers model that computes every sequence anew, beside a cache by which blocks are checked."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._module = module

    def forward(self, batch: Batch) -> torch.Tensor:
        sequences = [chunk.request.token_ids for chunk in batch.sampled_chunks]
        for row, token_ids in zip(super().forward(batch), sequences, strict=True):
            assert row.tolist() == logits_of(token_ids).tolist(), "the cache holds other tokens"
        with torch.inference_mode():
            rows = [self._module(torch.tensor([token_ids])).logits[:, -1] for token_ids in sequences]
        return torch.cat(rows) if rows else torch.empty(0, VOCAB_SIZE)


class Search(NamedTuple):
    """One beam search's parameters."""

    num_beams: int
    n: int
    length_penalty: float
    num_eos_ids: int


SEARCHES = [
    Search(num_beams=2, n=1, length_penalty=1.0, num_eos_ids=0),
    Search(num_beams=3, n=3, length_penalty=1.0, num_eos_ids=40),
    Search(num_beams=4, n=2, length_penalty=0.0, num_eos_ids=20),
    Search(num_beams=5, n=5, length_penalty=-1.5, num_eos_ids=60),
    Search(num_beams=4, n=4, length_penalty=2.0, num_eos_ids=1),
    Search(num_beams=16, n=16, length_penalty=1.0, num_eos_ids=3),
]


def generate_with_beams(module: Any, prompt_ids: list[int], search: Search) -> list[list[int]]:
    """What transformers' `generate` finds, best first, without padding."""
    eos_ids = list(range(search.num_eos_ids))
    ids = torch.tensor([prompt_ids])
    output = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        num_beams=search.num_beams,
        num_return_sequences=search.n,
        length_penalty=search.length_penalty,
        early_stopping=False,
        eos_token_id=eos_ids or None,
        pad_token_id=255,
    )
    return [_until_end(row, frozenset(eos_ids)) for row in output[:, len(prompt_ids) :].tolist()]


def _until_end(token_ids: list[int], eos_ids: frozenset[int]) -> list[int]:
    ends = [position for position, token_id in enumerate(token_ids, start=1) if token_id in eos_ids]
    return token_ids[: ends[0]] if ends else token_ids


def words(token_ids: list[int], eos_ids: frozenset[int]) -> str:
    return "".join(f" {token_id}" for token_id in token_ids if token_id not in eos_ids)


def engine_of(module: Any, search: Search, *, limits: EngineConfig | None = None) -> LLMEngine:
    eos_ids = frozenset(range(search.num_eos_ids))
    limits = limits or sizes(block_size=4)
    return LLMEngine(UncachedModel(module), NumberTokenizer(), sizes=limits, max_context=512, eos_ids=eos_ids)


def beam_request(request_id: str, prompt_ids: list[int], search: Search) -> EngineRequest:
    params = SamplingParams(
        max_tokens=MAX_TOKENS,
        temperature=0,
        n=search.n,
        num_beams=search.num_beams,
        length_penalty=search.length_penalty,
    )
    return EngineRequest(request_id, prompt_ids, params)


def run(engine: LLMEngine) -> dict[str, list[EngineOutput]]:
    outputs: dict[str, list[EngineOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_choices_equal_those_of_generate(family: str, search: Search) -> None:
    """Same tokens, same order, for searches that end by tokens, by length and by the bound on scores."""
    module = tiny_module(family)
    eos_ids = frozenset(range(search.num_eos_ids))
    for prompt_ids in random_prompts(2, longest=20, seed=search.num_beams):
        expected = generate_with_beams(module, prompt_ids, search)
        engine = engine_of(module, search)
        engine.add_request(beam_request("beams", prompt_ids, search))

        outputs = run(engine)["beams"]

        assert [output.text for output in outputs] == [words(token_ids, eos_ids) for token_ids in expected]
        assert [output.completion_tokens for output in outputs] == [len(token_ids) for token_ids in expected]
        assert [output.index for output in outputs] == list(range(search.n))
        assert [output.open_choices for output in outputs] == list(reversed(range(search.n)))
        assert all(output.finish_reason for output in outputs)
        assert engine.stats.blocks_used == 0


@pytest.mark.parametrize(("block_size", "num_tokens"), [(4, 132), (32, 256)])
def test_beams_beside_others_on_a_small_cache(block_size: int, num_tokens: int) -> None:
    """Searches beside greedy requests, preempted and sharing blocks, still give what `generate` gives."""
    module = tiny_module("llama")
    limits = sizes(block_size=block_size, kv_cache_bytes=kv_cache_bytes(module, num_tokens=num_tokens))
    engine = tiny_engine(module, limits=limits, eos_ids=frozenset({0}))
    search = Search(num_beams=4, n=4, length_penalty=1.0, num_eos_ids=1)
    prompts = random_prompts(6, longest=40)
    for index, prompt_ids in enumerate(prompts):
        engine.add_request(greedy_request(f"greedy {index}", prompt_ids, max_tokens=40))
        engine.add_request(beam_request(f"beams {index}", prompt_ids, search))

    outputs = run(engine)

    assert engine.stats.preemptions > 0
    assert engine.stats.blocks_used == 0
    for index, prompt_ids in enumerate(prompts):
        expected = generate_with_beams(module, prompt_ids, search)
        assert [output.text for output in outputs[f"beams {index}"]] == [
            words(token_ids, frozenset({0})) for token_ids in expected
        ]


def test_text_comes_at_the_end() -> None:
    """A search says nothing before it is done; then all its choices come in one step, best first."""
    module = tiny_module("llama")
    search = Search(num_beams=3, n=2, length_penalty=1.0, num_eos_ids=0)
    engine = engine_of(module, search)
    engine.add_request(beam_request("beams", [1, 2, 3], search))

    steps = outputs_by_step(engine)

    assert [len(outputs) for outputs in steps] == [0] * (MAX_TOKENS - 1) + [2]
    assert engine.stats.steps == MAX_TOKENS


def test_beams_copy_only_the_block_they_continue() -> None:
    """Beams of one parent share its full blocks; what each search holds is bounded by what may differ."""
    module = tiny_module("llama")
    search = Search(num_beams=4, n=1, length_penalty=1.0, num_eos_ids=0)
    engine = engine_of(module, search)
    engine.add_request(beam_request("beams", list(range(40)), search))

    for _ in range(4):
        engine.step()

    # The prompt's ten full blocks once, and at most one for each beam's completion.
    assert 10 < engine.stats.blocks_used <= 10 + 4
