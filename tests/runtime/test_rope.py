"""Rotary frequencies are those that transformers computes, bit for bit."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from flashgen_runtime.engine.rope import rope_of

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        LLAMA3,
        YARN,
        {**YARN, "attention_factor": 0.75},
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
        {**YARN, "factor": 1.0},
    ],
)
def test_frequencies_equal_those_of_transformers(parameters: dict[str, Any]) -> None:
    """Every type with all of its parameters; the configuration goes through its JSON."""
    config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=parameters
    )
    expected: Any = LlamaRotaryEmbedding(config)

    found = rope_of(config.to_dict(), head_size=128)

    assert torch.equal(found.frequencies, expected.inv_freq)
    assert found.factor == pytest.approx(expected.attention_scaling, rel=1e-12)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rope_theta": 500000.0, "rope_scaling": None},
        {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "yarn", "factor": 2.0}, "original_max_position_embeddings": 1024},
    ],
)
def test_old_spellings(fields: dict[str, Any]) -> None:
    """Checkpoints from before `rope_parameters`, read as transformers reads them."""
    tree = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "max_position_embeddings": 4096, **fields}
    expected: Any = LlamaRotaryEmbedding(Qwen3Config.from_dict(dict(tree)))

    found = rope_of(tree, head_size=64)

    assert torch.equal(found.frequencies, expected.inv_freq)
    assert found.factor == pytest.approx(expected.attention_scaling, rel=1e-12)
