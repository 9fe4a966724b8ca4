"""Writes a checkpoint of `benchmarks.models` as GGUF, in the environment of `llama_cpp`.

Its own converter knows tokenizers by a list of hashes and so refuses ours.

Run: python -m benchmarks.peers.llama_cpp_convert FOLDER BF16|Q8_0|Q4_0 FILE
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]  # in the peer's environment
import numpy as np

Values = np.ndarray[Any, np.dtype[np.float32]]

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def main(folder: Path, type_name: str, target: Path) -> None:
    """Converts the tensors one by one."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(target, config["model_type"])
    _write_sizes(writer, config)
    _write_vocabulary(writer, folder, config["vocab_size"])
    quantization = gguf.GGMLQuantizationType[type_name]
    for name, values in _tensors(folder):
        # Vectors stay in fp32, as its own converter has it.
        kind = quantization if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        ordered = _in_its_order(name, values, config)
        writer.add_tensor(_gguf_name(name), gguf.quants.quantize(ordered, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _write_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """The byte-level BPE, filled up with unused entries to the size of the embedding."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    by_id = {token_id: token for token, token_id in model["vocab"].items()}
    tokens = [by_id.get(token_id, f"<unused{token_id}>") for token_id in range(size)]
    kinds = [gguf.TokenType.NORMAL if token_id in by_id else gguf.TokenType.UNUSED for token_id in range(size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)  # noqa: FBT003  # the library's interface


def _tensors(folder: Path) -> Iterator[tuple[str, Values]]:
    """Names and fp32 values; numpy has no bf16, which is the upper half of fp32."""
    with (folder / "model.safetensors").open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(8 + header_size + begin)
            halves = np.frombuffer(file.read(end - begin), dtype=np.uint16).astype(np.uint32) << 16
            yield name, halves.view(np.float32).reshape(entry["shape"])


def _in_its_order(name: str, values: Values, config: dict[str, Any]) -> Values:
    """RoPE turns neighbours in its llama, halves in the checkpoint: rows of queries and keys change places."""
    heads = {"q_proj.weight": "num_attention_heads", "k_proj.weight": "num_key_value_heads"}
    key = next((key for ending, key in heads.items() if name.endswith(ending)), None)
    if config["model_type"] != "llama" or key is None:
        return values
    rows, columns = values.shape
    halves = values.reshape(config[key], 2, rows // config[key] // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return NAMES[stem] + ".weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
