"""Checkpoints for `bench_load`: real shapes, random bf16 weights, written as each reader wants them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.make_model import CLASSES
from benchmarks.peers import loaders

SHARD_BYTES = "5GB"


@dataclass(frozen=True, slots=True)
class LoadShape:
    """A checkpoint's size and configuration."""

    # Of the safetensors files.
    gigabytes: float
    family: str
    config: dict[str, Any]


def _qwen3(hidden: int, intermediate: int, layers: int, *, vocab: int = 151_936, heads: int = 16) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }


# One to be loaded before all others, one for a quick look, then 0.36B, Qwen3-0.6B, Qwen3-1.7B, Llama-3.2-3B.
SHAPES = (
    LoadShape(0.01, "qwen3", _qwen3(256, 512, 2, vocab=8192, heads=2)),
    LoadShape(0.13, "qwen3", _qwen3(512, 1536, 8, vocab=32_768, heads=8)),
    LoadShape(0.72, "qwen3", _qwen3(1024, 2560, 16, vocab=100_000, heads=8)),
    LoadShape(1.19, "qwen3", _qwen3(1024, 3072, 28)),
    LoadShape(3.44, "qwen3", _qwen3(2048, 6144, 28)),
    LoadShape(
        6.43,
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
)


def nearest_shape(gigabytes: float) -> LoadShape:
    """The checkpoint of about this size."""
    return min(SHAPES, key=lambda shape: abs(shape.gigabytes - gigabytes))


def write_checkpoint(shape: LoadShape, folder: Path) -> int:
    """Writes configuration and safetensors as transformers does, and a pickle beside; gives the bytes of the former."""
    config_class, model_class = CLASSES[shape.family]
    config: Any = config_class(
        **shape.config, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    with torch.device("meta"):
        model: Any = model_class(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    # Norms of ones and weights of the usual size: tokens are compared.
    generator = torch.Generator().manual_seed(0)
    block = torch.empty(1 << 22, dtype=torch.float32).normal_(0, 0.02, generator=generator).to(torch.bfloat16)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        values = parameter.data.flatten()
        if parameter.dim() == 1:
            values.fill_(1.0)
            continue
        # Rolled, so that no two tensors and no two rows are equal.
        own = block.roll(7919 * number + len(name))
        for start in range(0, len(values), len(own) - 13):
            part = values[start : start + len(own) - 13]
            part.copy_(own[: len(part)])
    model.tie_weights()
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    files = sorted(folder.glob("*.safetensors"))
    # The same parameters, a tied one once.
    torch.save({name: parameter.data for name, parameter in model.named_parameters()}, folder / loaders.PICKLED)
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    print(write_checkpoint(nearest_shape(float(sys.argv[1])), Path(sys.argv[2])))
