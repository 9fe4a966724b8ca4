"""Tiny random models, tokenizers with simple laws, and requests: what several tests of the runtime build on."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from flashgen_runtime.config import EngineConfig
from flashgen_runtime.engine.base import EngineOutput, EngineRequest
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.loader.base import LoadedModel

# These models are so small that waiting for a second thread takes longer than computing.
torch.set_num_threads(1)

VOCAB_SIZE = 256
MISTRAL_WINDOW = 12

# Large enough that random models tell tokens apart: with transformers' 0.02 every distribution is nearly flat.
INITIALIZER_RANGE = 0.3

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": INITIALIZER_RANGE,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def tiny_config(family: str) -> PreTrainedConfig:
    """The configuration of a two-layer model of a family: llama, qwen3, mistral or gpt_neox."""
    if family == "llama":
        return LlamaConfig(**_SIZES, num_key_value_heads=2)
    if family == "qwen3":
        return Qwen3Config(**_SIZES, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)
    if family == "mistral":
        return MistralConfig(**_SIZES, num_key_value_heads=1, sliding_window=MISTRAL_WINDOW)
    assert family == "gpt_neox", f"no tiny model of the family {family}"
    return GPTNeoXConfig(**_SIZES)


def tiny_module(family: str, *, seed: int = 0) -> Any:
    """A random model of a family, in eval mode, float32."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32).eval()


def loaded(module: Any) -> LoadedModel:
    """A module as the loader gives it."""
    return LoadedModel(
        module=module.requires_grad_(requires_grad=False),
        config=module.config,
        path=Path("tiny"),
        dtype=module.dtype,
        device=module.device,
        weight_bytes=sum(parameter.nbytes for parameter in module.parameters()),
    )


class NumberTokenizer:
    """Token id 97 is " 97": every token shows in the text, none depends on its neighbours."""

    vocab_size = VOCAB_SIZE

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        del add_special_tokens
        return [int(word) for word in text.split()]

    def decode(self, token_ids: Any) -> str:
        return "".join(f" {token_id}" for token_id in token_ids)


class ByteTokenizer:
    """One token per byte of UTF-8."""

    vocab_size = 256

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        del add_special_tokens
        return list(text.encode())

    def decode(self, token_ids: Any) -> str:
        return bytes(token_ids).decode(errors="replace")


def sizes(
    *,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int = 512,
    block_size: int = 16,
    kv_cache_bytes: int = 4 << 20,
) -> EngineConfig:
    """The engine's limits; the defaults never stand in a test's way."""
    return EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        kv_cache_bytes=kv_cache_bytes,
    )


def kv_cache_bytes(module: Any, *, num_tokens: int) -> int:
    """Memory for the keys and values of so many tokens."""
    config = module.config
    num_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(num_tokens * config.num_hidden_layers * 2 * num_heads * head_dim * module.dtype.itemsize)


def tiny_engine(module: Any, *, limits: EngineConfig | None = None, eos_ids: frozenset[int] = frozenset()) -> LLMEngine:
    """An engine around a module, whose attention it takes over."""
    return LLMEngine(loaded(module), NumberTokenizer(), sizes=limits or sizes(), max_context=512, eos_ids=eos_ids)


def greedy_request(request_id: str, prompt_ids: list[int], *, max_tokens: int) -> EngineRequest:
    return EngineRequest(request_id, prompt_ids, SamplingParams(max_tokens=max_tokens, temperature=0))


def run_to_end(engine: LLMEngine) -> dict[str, str]:
    """Steps until nothing is left; the text of each request."""
    texts: dict[str, str] = {}
    while engine.has_work:
        for output in engine.step():
            texts[output.request_id] = texts.get(output.request_id, "") + output.text
    return texts


def outputs_by_step(engine: LLMEngine) -> list[list[EngineOutput]]:
    steps = []
    while engine.has_work:
        steps.append(engine.step())
    return steps


def random_prompts(count: int, *, longest: int = 60, seed: int = 0) -> list[list[int]]:
    """Prompts of mixed lengths, from one token up."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def generate_greedily(module: Any, prompt_ids: list[int], *, max_tokens: int) -> list[int]:
    """What transformers' `generate` continues with."""
    ids = torch.tensor([prompt_ids])
    output = module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
    )
    return output[0, len(prompt_ids) :].tolist()
