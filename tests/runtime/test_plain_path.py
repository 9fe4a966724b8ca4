"""Models that do not run on flat batches: same ids as transformers' `generate`, memory still bounded."""

from typing import Any

import pytest
import torch

from flashgen_runtime.engine.base import EngineRequest
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.plain_runner import PlainModel
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.errors import ConfigError, RequestError, WeightsError
from tests.runtime_models import (
    generate_greedily,
    greedy_request,
    loaded,
    random_prompts,
    run_to_end,
    sizes,
    tiny_engine,
    tiny_module,
)

# With "phi3_longrope", whose original context ends at 32, completions cross the place where the frequencies change.
FAMILIES = ["bloom", "falcon", "phi3_longrope", "mamba", "t5"]
PROMPTS = random_prompts(5, longest=40)
MAX_TOKENS = 12


@pytest.fixture(scope="module", params=FAMILIES)
def module(request: pytest.FixtureRequest) -> Any:
    return tiny_module(request.param)


@pytest.fixture(scope="module")
def texts(module: Any) -> list[str]:
    """What transformers makes of each prompt."""
    completions = [generate_greedily(module, prompt, max_tokens=MAX_TOKENS) for prompt in PROMPTS]
    return ["".join(f" {token_id}" for token_id in ids) for ids in completions]


def plain(module: Any) -> PlainModel:
    return PlainModel(loaded(module), path_reason="for the test")


def run(engine: LLMEngine) -> list[str]:
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(greedy_request(str(index), prompt, max_tokens=MAX_TOKENS))
    texts = run_to_end(engine)
    return [texts[str(index)] for index in range(len(PROMPTS))]


def test_requests_together_equal_generate(module: Any, texts: list[str]) -> None:
    """Several requests in turn, each with its own state, which is gone afterwards."""
    model = plain(module)

    assert run(tiny_engine(module, model=model)) == texts
    assert model.num_states == 0


def test_preempted_requests_equal_generate(module: Any, texts: list[str]) -> None:
    """What a request has lost is computed again."""
    model = plain(module)
    limits = sizes(block_size=8, kv_cache_bytes=8 * 8 * model.block_bytes_per_token)
    engine = tiny_engine(module, model=model, limits=limits)

    assert run(engine) == texts
    assert engine.stats.preemptions > 0


def test_aborted_request_is_forgotten(module: Any) -> None:
    """Its state goes with it."""
    model = plain(module)
    engine = tiny_engine(module, model=model)
    engine.add_request(greedy_request("a", [1, 2, 3], max_tokens=9))
    engine.step()
    assert model.num_states == 1

    engine.abort("a")

    assert model.num_states == 0


def test_memory_of_a_request_is_measured(module: Any) -> None:
    """At least what its keys, values and states take at the length of a block; never nothing."""
    model = plain(module)

    assert model.block_bytes_per_token >= 100
    assert not model.can_chunk
    assert not model.can_share_blocks


def test_request_that_never_fits_is_refused() -> None:
    """Longer than the pool, although no block holds anything."""
    module = tiny_module("bloom")
    model = plain(module)
    engine = tiny_engine(module, model=model, limits=sizes(kv_cache_bytes=32 * model.block_bytes_per_token))

    with pytest.raises(RequestError):
        engine.add_request(greedy_request("a", [1] * 30, max_tokens=9))


def test_description() -> None:
    """One request per forward pass: nothing else can change its result."""
    description = plain(tiny_module("bloom")).description

    assert (description.path, description.path_reason, description.kernels) == ("plain", "for the test", "torch")
    assert description.is_batch_invariant


def test_quantised_linears_on_the_plain_path() -> None:
    """Where the linear layers are torch's own, they take the format."""
    model = PlainModel(loaded(tiny_module("bloom")), path_reason="", quantization="int8")

    assert model.description.quantization == "int8"
    assert len(run(tiny_engine(None, model=model))) == len(PROMPTS)


@pytest.mark.parametrize("family", ["falcon", "t5"])
def test_linears_that_cannot_be_quantised_are_refused(family: str) -> None:
    """A class with linear layers of its own, or one that looks into them."""
    with pytest.raises(ConfigError, match="cannot run with `int4`"):
        PlainModel(loaded(tiny_module(family)), path_reason="", quantization="int4")


def test_decoder_without_a_start_is_named() -> None:
    """An encoder-decoder that does not say what the decoder begins with."""
    module = tiny_module("t5")
    module.generation_config.decoder_start_token_id = module.config.decoder_start_token_id = None

    with pytest.raises(WeightsError, match="decoder_start_token_id"):
        plain(module)


def test_bf16_runs_in_bf16() -> None:
    """The class stays as it is, in the checkpoint's dtype."""
    model = plain(tiny_module("bloom").to(torch.bfloat16))

    assert model.description.dtype == model.description.kv_cache_dtype == "bfloat16"
    assert len(run(tiny_engine(None, model=model))) == len(PROMPTS)


def test_beams_equal_generate() -> None:
    """Beams without shared blocks are computed anew for every token, and find what `generate` finds."""
    module = tiny_module("bloom")
    prompt = PROMPTS[0]
    ids = torch.tensor([prompt])
    expected = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=6,
        num_beams=3,
        do_sample=False,
        early_stopping=False,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    engine = tiny_engine(module, model=plain(module))
    engine.add_request(EngineRequest("a", prompt, SamplingParams(max_tokens=6, temperature=0, num_beams=3)))

    assert run_to_end(engine)["a"] == "".join(f" {token_id}" for token_id in expected)
