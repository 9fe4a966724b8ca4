"""What a model takes in memory, from its configuration and the headers of its files: nothing is loaded.

Weights of native models are counted exactly, as they run. Of all other architectures the checkpoint's tensors count,
in the dtype that is asked for. The compiler counts the same (`flashgen.weight_sizes`), and a test compares both.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashgen_runtime.config import DType, EngineConfig, ModelConfig, Quantization
from flashgen_runtime.engine.native_config import UnsupportedConfigError, asked_dtype, parse_config
from flashgen_runtime.engine.prepare import recipe_of
from flashgen_runtime.loader.checkpoint import is_encoder, read_headers, read_json
from flashgen_runtime.loader.dequantized import StoredLayer, find_layers
from flashgen_runtime.loader.safetensors_header import TensorEntry
from flashgen_runtime.quantization.config import parse_quantization

# Of tokens without a limit of the checkpoint's own.
ASSUMED_CONTEXT = 4096

_FLOAT_BYTES = 4

# Scales beside a token's int8 keys and values of one head.
_SCALE_BYTES = 2 * _FLOAT_BYTES

# Activations of one token beside each other, in hidden sizes: generous, for classes that we do not know.
_ACTIVATIONS = 24


def weight_bytes(path: Path, *, dtype: DType, quantization: Quantization | None, device: str = "cpu") -> int:
    """Bytes of a model's weights when it is loaded; raises `WeightsError`."""
    recipe = recipe_of(path, dtype=dtype, quantization=quantization) if device == "cpu" else None
    return recipe.shapes().num_bytes if recipe is not None else _checkpoint_bytes(path, dtype)


def token_kv_bytes(path: Path, *, dtype: DType, kv_cache_dtype: str) -> int:
    """Bytes of one token's keys and values in all layers; 0 for encoders and for what keeps none."""
    tree = read_json(path / "config.json")
    if is_encoder(tree.get("model_type")):
        return 0
    layers, kv_heads, head_size = _kv_shape(tree)
    if kv_cache_dtype == "int8":
        return int(layers * kv_heads * (2 * head_size + _SCALE_BYTES))
    return int(layers * kv_heads * 2 * head_size * _itemsize(path, tree, dtype))


def sequence_kv_bytes(path: Path, config: ModelConfig, engine: EngineConfig) -> int:
    """Bytes of the KV cache of one sequence of the longest context, in whole blocks."""
    per_token = token_kv_bytes(path, dtype=config.dtype, kv_cache_dtype=engine.kv_cache_dtype)
    tokens = config.max_context or context_limit(path)
    return -(-tokens // engine.block_size) * engine.block_size * per_token


def context_limit(path: Path) -> int:
    """Tokens that a checkpoint has positions for, or an assumption."""
    text = _text_config(read_json(path / "config.json"))
    return _first(text, "max_position_embeddings", "n_positions") or ASSUMED_CONTEXT


def workspace_bytes(path: Path, engine: EngineConfig) -> int:
    """Bytes of a forward pass's buffers that a batch may touch."""
    text = _text_config(read_json(path / "config.json"))
    hidden_size = _first(text, "hidden_size", "n_embd", "d_model")
    intermediate_size = _first(text, "intermediate_size", "n_inner", "d_ff") or 4 * hidden_size
    tokens = max(engine.max_num_batched_tokens, context_limit(path) if is_encoder(text.get("model_type")) else 0)
    logits = 0 if is_encoder(text.get("model_type")) else engine.max_num_seqs * int(text.get("vocab_size", 0))
    return _FLOAT_BYTES * (tokens * (_ACTIVATIONS * hidden_size + 3 * intermediate_size) + logits)


def _checkpoint_bytes(path: Path, dtype: DType) -> int:
    tree = read_json(path / "config.json")
    itemsize = _itemsize(path, tree, dtype)
    entries = {name: entry for header in read_headers(path) for name, entry in header.tensors.items()}
    quantization = parse_quantization(path, tree)
    layers = {} if quantization is None else find_layers(path, entries, quantization)
    in_floats = sum(_num_values(layer, entries) * itemsize for layer in layers.values())
    for name in {name for layer in layers.values() for name in layer.names}:
        del entries[name]
    floats = {"F64", "F32", "F16", "BF16"}
    return in_floats + sum(
        _numel(entry.shape) * itemsize if entry.dtype in floats else entry.end - entry.start
        for entry in entries.values()
    )


def _num_values(layer: StoredLayer, entries: Mapping[str, TensorEntry]) -> int:
    """Of a quantised layer; its first tensor holds their codes, several to a word."""
    codes = entries[layer.names[0]]
    return _numel(codes.shape) * (32 // layer.scheme.precision.bits if codes.dtype == "I32" else 1)


def _itemsize(path: Path, tree: Mapping[str, Any], dtype: DType) -> int:
    """Of the dtype that is asked for, else of the configuration's, else of the first tensor."""
    found = asked_dtype(tree, dtype) or asked_dtype(_text_config(tree), dtype)
    if found is not None:
        return found.itemsize
    first = next(iter(read_headers(path)[0].tensors.values())).dtype
    return {"F32": 4, "F64": 8}.get(first, 2)


def _text_config(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = tree.get("text_config")
    return inner if isinstance(inner, dict) else tree


def _kv_shape(tree: Mapping[str, Any]) -> tuple[int, int, int]:
    """Layers, heads of keys and values, and values of a head; zeros for what keeps none."""
    try:
        native = parse_config(tree)
    except UnsupportedConfigError:
        pass
    else:
        return native.num_layers, native.num_kv_heads, native.head_size
    text = _text_config(tree)
    heads = _first(text, "num_attention_heads", "n_head", "num_heads")
    if not heads:
        return 0, 0, 0
    is_multi_query = text.get("model_type") == "gpt_bigcode" and text.get("multi_query", True)
    return (
        _first(text, "num_hidden_layers", "n_layer", "num_layers"),
        1 if is_multi_query else _first(text, "num_key_value_heads") or heads,
        _first(text, "head_dim") or _first(text, "hidden_size", "n_embd", "d_model") // heads,
    )


def _first(text: Mapping[str, Any], *names: str) -> int:
    """The first of these fields that is a positive number, else 0."""
    found = (text.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), 0)


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
