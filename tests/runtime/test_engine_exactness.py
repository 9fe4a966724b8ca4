"""The engine's greedy ids equal those of transformers' `generate`, however requests are batched and chunked."""

from typing import NamedTuple

import pytest

from flashgen_runtime.config import EngineConfig
from tests.runtime_models import (
    generate_greedily,
    greedy_request,
    kv_cache_bytes,
    random_prompts,
    run_to_end,
    sizes,
    tiny_engine,
    tiny_module,
)

FAMILIES = ["llama", "qwen3", "mistral", "gpt_neox"]
MAX_TOKENS = 24


class Reference(NamedTuple):
    prompts: list[list[int]]
    texts: list[str]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(family: str) -> Reference:
    """Sixteen prompts of mixed lengths and what `generate` makes of them, one by one."""
    module = tiny_module(family)
    prompts = random_prompts(16)
    ids = [generate_greedily(module, prompt, max_tokens=MAX_TOKENS) for prompt in prompts]
    return Reference(prompts, ["".join(f" {token_id}" for token_id in completion) for completion in ids])


LIMITS = {
    "roomy": sizes(),
    "small chunks": sizes(max_num_batched_tokens=17, block_size=4),
    "few sequences": sizes(max_num_seqs=3, block_size=1),
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
def test_batch_of_mixed_lengths_equals_generate(family: str, reference: Reference, limits: EngineConfig) -> None:
    """Sixteen requests together give what each gives alone in transformers."""
    engine = tiny_engine(tiny_module(family), limits=limits)
    for index, prompt in enumerate(reference.prompts):
        engine.add_request(greedy_request(str(index), prompt, max_tokens=MAX_TOKENS))

    texts = run_to_end(engine)

    assert [texts[str(index)] for index in range(16)] == reference.texts
    assert engine.stats.blocks_used == 0


def test_preempted_requests_equal_generate(family: str, reference: Reference) -> None:
    """On a pool so small that requests are preempted, each still gives the same."""
    module = tiny_module(family)
    limits = sizes(block_size=4, kv_cache_bytes=kv_cache_bytes(module, num_tokens=160))
    engine = tiny_engine(module, limits=limits)
    for index, prompt in enumerate(reference.prompts):
        engine.add_request(greedy_request(str(index), prompt, max_tokens=MAX_TOKENS))

    texts = run_to_end(engine)

    assert [texts[str(index)] for index in range(16)] == reference.texts
    assert engine.stats.blocks_total == 40
    assert engine.stats.preemptions > 0


def test_each_alone_equals_generate(family: str, reference: Reference) -> None:
    """One request at a time gives the same as transformers."""
    engine = tiny_engine(tiny_module(family))

    for prompt, text in zip(reference.prompts, reference.texts, strict=True):
        engine.add_request(greedy_request("alone", prompt, max_tokens=MAX_TOKENS))
        assert run_to_end(engine)["alone"] == text
