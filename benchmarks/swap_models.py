"""Many small random Llamas on the disk, each with bytes of its own: what a worker swaps. Free of transformers."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HEAD_SIZE = 64
MAX_CONTEXT = 256


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """A decoder with as many heads of keys as of queries."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def num_bytes(self) -> int:
        """Of the checkpoint, without its header."""
        return sum(rows * columns for rows, columns in _tensor_shapes(self).values()) * self.dtype.itemsize

    @property
    def name(self) -> str:
        """What a folder of it may be called."""
        parts = (self.num_layers, self.hidden_size, self.intermediate_size, self.vocab_size)
        return "-".join(map(str, parts)) + "-" + str(self.dtype).removeprefix("torch.")


def write_llama(folder: Path, shape: LlamaShape, *, seed: int) -> None:
    """Writes a checkpoint with one token for each byte, unless the folder is there."""
    if folder.exists():
        return
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "config.json").write_text(json.dumps(_config(shape)))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (rows, columns) in _tensor_shapes(shape).items():
        values = torch.randn(rows, columns, generator=generator, dtype=torch.float32).mul_(0.05).to(shape.dtype)
        tensors[name] = values.squeeze(0) if "norm" in name else values
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(partial)
    partial.rename(folder)


def _config(shape: LlamaShape) -> dict[str, object]:
    num_heads = shape.hidden_size // HEAD_SIZE
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": MAX_CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": str(shape.dtype).removeprefix("torch."),
    }


def _tensor_shapes(shape: LlamaShape) -> dict[str, tuple[int, int]]:
    """Of every tensor, norms as one row."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    shapes = {"model.embed_tokens.weight": (shape.vocab_size, hidden), "lm_head.weight": (shape.vocab_size, hidden)}
    shapes["model.norm.weight"] = (1, hidden)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        for projection in ("q", "k", "v", "o"):
            shapes[f"{prefix}self_attn.{projection}_proj.weight"] = (hidden, hidden)
        for projection in ("gate", "up"):
            shapes[f"{prefix}mlp.{projection}_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (1, hidden)
    return shapes


def _write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
