"""Tiny random models, tokenizers with simple laws, and requests: what several tests of the runtime build on."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Starcoder2Config,
    T5Config,
)

from flashgen_runtime.config import EngineConfig
from flashgen_runtime.engine.base import EngineOutput, EngineRequest
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.model_runner import PagedModel
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.kernels.kv_layer import TILE_SIZE
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


# Families that our native decoder runs too.
NATIVE_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

# All that the paged path takes, by what they add to attention and layers.
PAGED_FAMILIES = (
    *NATIVE_FAMILIES,
    "gemma2",
    "gemma3",
    "phi3",
    "gpt_neox",
    "gpt2",
    "starcoder2",
    "gpt_bigcode",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
)


def tiny_config(family: str) -> PreTrainedConfig:
    """The configuration of a two-layer model of a family, one of the names above or of `_CONFIGS`."""
    make, fields = _CONFIGS[family]
    return make(**{**_SIZES, **fields})


# What differs from `_SIZES`: heads that share keys, windows, softcaps, tied heads, experts.
_CONFIGS: dict[str, tuple[Callable[..., PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"num_key_value_heads": 2}),
    "mistral": (MistralConfig, {"num_key_value_heads": 1, "sliding_window": MISTRAL_WINDOW}),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        Gemma2Config,
        {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 10, "attn_logit_softcapping": 3.0},
    ),
    "gemma3": (
        Gemma3TextConfig,
        {
            "num_key_value_heads": 1,
            "head_dim": 16,
            "sliding_window": 10,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": (Phi3Config, {"num_key_value_heads": 2}),
    "gpt_neox": (GPTNeoXConfig, {}),
    "gpt2": (GPT2Config, {}),
    "starcoder2": (Starcoder2Config, {"num_key_value_heads": 2, "sliding_window": 10}),
    "gpt_bigcode": (GPTBigCodeConfig, {"multi_query": True, "n_inner": 96}),
    "mixtral": (MixtralConfig, {"num_key_value_heads": 2, "num_local_experts": 4}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "gpt_oss": (
        GptOssConfig,
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 10,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "bloom": (BloomConfig, {"n_layer": 2, "n_head": 4}),
    "falcon": (FalconConfig, {"alibi": False, "new_decoder_architecture": False}),
    "phi3_longrope": (
        Phi3Config,
        {
            "num_key_value_heads": 2,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 32,
                "short_factor": [1.0] * 6,
                "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
            },
        },
    ),
    "mamba": (MambaConfig, {"state_size": 8}),
    "t5": (
        T5Config,
        {"d_model": 48, "d_ff": 96, "d_kv": 12, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    ),
}


def tiny_module(family: str, *, seed: int = 0) -> Any:
    """A random model of a family, in eval mode, float32."""
    torch.manual_seed(seed)
    config = tiny_config(family)
    auto_class: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto_class.from_config(config, dtype=torch.float32).eval()


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
    block_size: int = 32,
    kv_cache_bytes: int = 4 << 20,
    batching_mode: Literal["continuous", "static"] = "continuous",
    max_wait_seconds: float = 0.0,
    kv_cache_dtype: Literal["auto", "int8"] = "auto",
    prefix_caching: bool = True,
    deterministic: bool = False,
) -> EngineConfig:
    """The engine's limits; the defaults never stand in a test's way."""
    return EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        kv_cache_bytes=kv_cache_bytes,
        batching_mode=batching_mode,
        max_wait_seconds=max_wait_seconds,
        kv_cache_dtype=kv_cache_dtype,
        prefix_caching=prefix_caching,
        deterministic=deterministic,
    )


def kv_cache_bytes(module: Any, *, num_tokens: int) -> int:
    """Memory for the keys and values of so many tokens."""
    config = module.config
    num_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(num_tokens * config.num_hidden_layers * 2 * num_heads * head_dim * module.dtype.itemsize)


def tiny_engine(
    module: Any,
    *,
    limits: EngineConfig | None = None,
    eos_ids: frozenset[int] = frozenset(),
    model: CausalModel | None = None,
) -> LLMEngine:
    """An engine around a copy of a module on the paged path, or around another `model`.

    With kernels where they take the blocks, which is a multiple of 32 tokens.
    """
    limits = limits or sizes()
    paged = model or PagedModel(loaded(deepcopy(module)), with_kernels=limits.block_size % TILE_SIZE == 0)
    return LLMEngine(paged, NumberTokenizer(), sizes=limits, max_context=512, eos_ids=eos_ids)


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
    # A decoder beside an encoder begins with a token of its own instead of the prompt.
    return output[0, 1 if module.config.is_encoder_decoder else len(prompt_ids) :].tolist()
