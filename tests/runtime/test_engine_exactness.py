"""Greedy ids equal those of transformers' `generate`, however requests are batched, chunked, cached and preempted."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from flashgen_runtime.config import EngineConfig, Quantization
from flashgen_runtime.engine.batch import build_batch
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.model_runner import PagedModel
from flashgen_runtime.engine.native_decoder import load_native
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.scheduler import Chunk
from flashgen_runtime.kernels.library import current_isa
from tests.runtime_models import (
    NATIVE_FAMILIES,
    PAGED_FAMILIES,
    generate_greedily,
    greedy_request,
    loaded,
    random_prompts,
    run_to_end,
    sizes,
    tiny_engine,
    tiny_module,
)

MAX_TOKENS = 10
BLOCK_SIZE = 32

# The last two end just before the end of a block, so that they ask for another one while they decode.
PROMPTS = [*random_prompts(6, longest=50), *([7 * number % 256 for number in range(length)] for length in (62, 30))]


@dataclass(frozen=True, slots=True)
class Case:
    """A family on one of our paths, and what transformers makes of each prompt alone."""

    path: str
    module: Any
    folder: Path
    texts: list[str]

    def model(self) -> CausalModel:
        if self.path == "paged":
            return PagedModel(loaded(deepcopy(self.module)))
        return load_native(
            self.folder, dtype="auto", quantization=None, kv_cache_dtype="auto", max_num_batched_tokens=512
        )

    def engine(self, limits: EngineConfig) -> LLMEngine:
        return tiny_engine(self.module, limits=limits, model=self.model())

    def bytes_of(self, *, num_blocks: int) -> int:
        return num_blocks * BLOCK_SIZE * self.model().block_bytes_per_token


CASES = [*((family, "paged") for family in PAGED_FAMILIES), *((family, "native") for family in NATIVE_FAMILIES)]


@cache
def reference(family: str) -> list[str]:
    """What transformers continues each prompt with, one by one."""
    module = tiny_module(family)
    completions = [generate_greedily(module, prompt, max_tokens=MAX_TOKENS) for prompt in PROMPTS]
    return ["".join(f" {token_id}" for token_id in ids) for ids in completions]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, path = request.param
    module = tiny_module(family)
    folder = tmp_path_factory.mktemp(family)
    if path == "native":
        module.save_pretrained(folder)
    return Case(path, module, folder, reference(family))


def run(engine: LLMEngine, *, times: int = 1) -> list[str]:
    """The texts of all prompts, each so many times, added at once."""
    prompts = PROMPTS * times
    for index, prompt in enumerate(prompts):
        engine.add_request(greedy_request(str(index), prompt, max_tokens=MAX_TOKENS))
    texts = run_to_end(engine)
    return [texts[str(index)] for index in range(len(prompts))]


def test_sixty_four_together_equal_generate(case: Case) -> None:
    """A full batch of mixed lengths, in which requests end and others begin to decode."""
    engine = case.engine(sizes(prefix_caching=False))

    assert run(engine, times=8) == case.texts * 8
    assert engine.stats.blocks_used == 0


LIMITS = {
    "one at a time": sizes(max_num_seqs=1),
    "three at a time": sizes(max_num_seqs=3),
    "small chunks": sizes(max_num_batched_tokens=17),
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
def test_any_batch_equals_generate(case: Case, limits: EngineConfig) -> None:
    """Alone, beside a few, and with prompts computed in many small chunks beside decoding requests."""
    assert run(case.engine(limits)) == case.texts


def test_prefix_hits_equal_generate(case: Case) -> None:
    """A prompt whose first block an earlier request has left in the cache."""
    engine = case.engine(sizes())
    run(engine)

    assert run(engine) == case.texts
    assert engine.stats.prefix_hits > 0


def test_preempted_requests_equal_generate(case: Case) -> None:
    """On a pool so small that requests lose their blocks and are computed again."""
    engine = case.engine(sizes(kv_cache_bytes=case.bytes_of(num_blocks=4)))

    assert run(engine) == case.texts
    assert engine.stats.preemptions > 0


@pytest.mark.parametrize("family", PAGED_FAMILIES)
def test_torch_alone_equals_generate(family: str) -> None:
    """Without kernels: transformers' modules as they are, over a cache with blocks of any size."""
    engine = tiny_engine(tiny_module(family), limits=sizes(max_num_batched_tokens=23, block_size=4))

    assert run(engine) == reference(family)


@pytest.mark.skipif(current_isa() is None, reason="torch's products depend on the number of rows")
@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("family", PAGED_FAMILIES)
def test_logits_are_the_same_bits_in_any_batch(family: str, quantization: Quantization | None) -> None:
    """In bf16 and quantised: alone, together, and with prompts in chunks."""
    model = PagedModel(loaded(tiny_module(family).to(torch.bfloat16)), quantization=quantization)
    model.allocate_cache(num_blocks=3 * len(PROMPTS), block_size=BLOCK_SIZE)

    together = logits_of(model, PROMPTS)
    chunked = logits_of(model, PROMPTS, chunk_size=7)
    alone = [logits_of(model, [prompt])[0] for prompt in PROMPTS]

    assert model.description.is_batch_invariant
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    assert all(torch.equal(*pair) for pair in zip(alone, chunked, strict=True))


def logits_of(model: CausalModel, prompts: list[list[int]], *, chunk_size: int = 512) -> list[torch.Tensor]:
    """Of each prompt's last token, [V]; then each prompt's last token decodes once more, of which it is the second row.

    Prompts end in different steps when they are computed in chunks, so each has other company.
    """
    requests = [prompt_request(number, prompt) for number, prompt in enumerate(prompts)]
    rows: list[list[torch.Tensor]] = [[] for _ in requests]
    while any(len(found) < 2 for found in rows):
        chunks = [
            Chunk(request, min(chunk_size, request.num_uncomputed_tokens))
            for request, found in zip(requests, rows, strict=True)
            if len(found) < 2
        ]
        batch = build_batch(chunks, block_size=BLOCK_SIZE, device=model.device)
        logits = model.forward(batch).clone()
        for chunk, row in zip(batch.sampled_chunks, logits, strict=True):
            rows[requests.index(chunk.request)].append(row)
        for request, num_tokens in chunks:
            request.num_computed_tokens += num_tokens
            if not request.num_uncomputed_tokens:
                request.token_ids.append(request.token_ids[-1])
    return [torch.stack(found) for found in rows]


def prompt_request(number: int, prompt: list[int]) -> Request:
    request = Request(
        request_id=str(number),
        params=SamplingParams(max_tokens=2),
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        seed=0,
        eos_ids=frozenset(),
    )
    request.block_table.extend(range(3 * number, 3 * number + 3))
    return request
