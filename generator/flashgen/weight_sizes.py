"""What a model's weights and its KV cache take in memory, counted from the checkpoint without loading it.

The runtime counts the same in its `engine/sizes.py` and compares; the rules, for both:

* Decoders of Llama, Mistral, Qwen2 and Qwen3, and encoders of BERT, on a processor, if their configuration is one that
  the native classes take: what those hold, packed. Each linear layer is panels in the model's dtype, or in int8 or int4
  where it is quantised; projections of one input are one layer; biases and norms are float32. The embedding has the
  model's dtype. An unquantised head that is the embedding is counted once, as panels; else the head is panels of its
  own, int8 where anything is quantised. An encoder's positions are float32.
* Layers that the checkpoint itself holds as integers keep them where the kernels take them (`quantized_sizes`), and are
  floats in the model's dtype elsewhere; the rest of such a model is as it would be without quantisation.
* All others, and all on a card: every tensor of the files, those of floating point in the model's dtype.
* The model's dtype is the one asked for, else that of `config.json`, else that of the embedding (native) or of the
  first tensor (all others).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flashgen.config_fields import text_config
from flashgen.native_shapes import DecoderShape, EncoderShape, decoder_shape, encoder_shape
from flashgen.panel_sizes import linear_bytes
from flashgen.quantized_sizes import QuantizedLayers, dequantized_values, quantized_layers
from flashgen.safetensors_headers import TensorInfo, have_equal_bytes, read_tensors

FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# In the words of safetensors: what native models run in, and what is floating point.
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLOATS = frozenset({*_DTYPE_NAMES, "F64"})

_EMBEDDING = "model.embed_tokens.weight"
_HEAD_LAYER = "lm_head"
_HEAD = f"{_HEAD_LAYER}.weight"
_ENCODER_PREFIX = "bert."
_ENCODER_EMBEDDING = "embeddings.word_embeddings.weight"


class WeightSizes(NamedTuple):
    """Bytes of a model's weights."""

    # Of the data in its files.
    file_bytes: int

    # As they run.
    weight_bytes: int

    # Of one value in the model's dtype.
    value_bytes: int


def weight_sizes(
    folder: Path, config: Mapping[str, Any], *, dtype: str, quantization: str | None, is_on_card: bool
) -> WeightSizes:
    """The sizes of a checkpoint's weights; raises `ValueError` for files that cannot be read.

    Args:
        folder: with the weights.
        config: its `config.json`.
        dtype: of the weights that are not quantised; "auto" keeps the checkpoint's own.
        quantization: "int8" or "int4", of the linear layers.
        is_on_card: whether it runs on a card.
    """
    tensors = read_tensors(folder)
    if not tensors:
        raise ValueError(f"`{folder.name}` has no tensors")
    file_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    asked = _asked_dtype(config, dtype)
    decoder, encoder = (None, None) if is_on_card else (decoder_shape(config), encoder_shape(config))
    if decoder is not None and _EMBEDDING in tensors:
        own = asked or _float_dtype(tensors[_EMBEDDING])
        has_own_head = _has_own_head(tensors, is_tied=decoder.is_head_tied)
        quantized = quantized_layers(tensors, config, dtype=dtype, quantization=quantization)
        quantization = quantization if quantized is None else None
        count = _decoder_bytes(decoder, own, quantization, has_own_head=has_own_head, quantized=quantized)
        return WeightSizes(file_bytes, count, FLOAT_BYTES[own])
    if encoder is not None and (embedding := _encoder_embedding(tensors)) is not None:
        own = asked or _float_dtype(embedding)
        return WeightSizes(file_bytes, _encoder_bytes(encoder, own, quantization), FLOAT_BYTES[own])
    value_bytes = FLOAT_BYTES[asked] if asked else _value_bytes(next(iter(tensors.values())))
    in_floats = dequantized_values(tensors, config)
    count = sum(
        in_floats[name] * value_bytes if name in in_floats else _loaded_bytes(tensor, value_bytes)
        for name, tensor in tensors.items()
    )
    return WeightSizes(file_bytes, count, value_bytes)


def _asked_dtype(config: Mapping[str, Any], dtype: str) -> str | None:
    if dtype != "auto":
        return dtype
    places = (config, text_config(config))
    names = (place.get("dtype") or place.get("torch_dtype") for place in places)
    return next((name for name in names if name in FLOAT_BYTES), None)


def _float_dtype(tensor: TensorInfo) -> str:
    if tensor.dtype not in _DTYPE_NAMES:
        raise ValueError(f"weights of the type {tensor.dtype} are not run")
    return _DTYPE_NAMES[tensor.dtype]


def _has_own_head(tensors: Mapping[str, TensorInfo], *, is_tied: bool) -> bool:
    """Whether the head is another matrix than the embedding: a tied one that is there and differs is."""
    if not is_tied or _HEAD not in tensors:
        return not is_tied
    return not have_equal_bytes(tensors[_HEAD], tensors[_EMBEDDING])


def _encoder_embedding(tensors: Mapping[str, TensorInfo]) -> TensorInfo | None:
    """`None` too where norms have the names of old checkpoints, which the native encoder does not take."""
    if any(name.endswith(".gamma") for name in tensors):
        return None
    has_prefix = any(name.startswith(_ENCODER_PREFIX) for name in tensors)
    return tensors.get((_ENCODER_PREFIX if has_prefix else "") + _ENCODER_EMBEDDING)


def _decoder_bytes(
    shape: DecoderShape,
    dtype: str,
    quantization: str | None,
    *,
    has_own_head: bool,
    quantized: QuantizedLayers | None,
) -> int:
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    query_size, kv_size = shape.num_heads * shape.head_size, shape.num_kv_heads * shape.head_size

    def linear(names: list[str], in_features: int, out_features: int, *, has_bias: bool) -> int:
        if quantized is not None:
            return quantized.linear_bytes(names, in_features, out_features, dtype)
        return linear_bytes(quantization or dtype, in_features, out_features, has_bias=has_bias)

    norms = 2 * hidden + (2 * shape.head_size if shape.has_head_norm else 0)
    layers = shape.num_layers * norms * FLOAT_BYTES["float32"]
    for index in range(shape.num_layers):
        attention, mlp = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp"
        projections = [f"{attention}.{each}_proj" for each in "qkv"]
        layers += linear(projections, hidden, query_size + 2 * kv_size, has_bias=shape.has_qkv_bias)
        layers += linear([f"{attention}.o_proj"], query_size, hidden, has_bias=shape.has_output_bias)
        gate_and_up = [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
        layers += linear(gate_and_up, hidden, 2 * intermediate, has_bias=shape.has_mlp_bias)
        layers += linear([f"{mlp}.down_proj"], intermediate, hidden, has_bias=shape.has_mlp_bias)
    if quantized is not None:
        head = quantized.linear_bytes([_HEAD_LAYER], hidden, shape.vocab_size, dtype)
    else:
        head = linear_bytes("int8" if quantization else dtype, hidden, shape.vocab_size)
    is_shared = not has_own_head and quantization is None
    embedding = 0 if is_shared else shape.vocab_size * hidden * FLOAT_BYTES[dtype]
    return embedding + layers + hidden * FLOAT_BYTES["float32"] + head


def _encoder_bytes(shape: EncoderShape, dtype: str, quantization: str | None) -> int:
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    linear_format = quantization or dtype
    norm = 2 * hidden * FLOAT_BYTES["float32"]
    layer = (
        linear_bytes(linear_format, hidden, 3 * hidden, has_bias=True)
        + linear_bytes(linear_format, hidden, hidden, has_bias=True)
        + linear_bytes(linear_format, hidden, intermediate, has_bias=True)
        + linear_bytes(linear_format, intermediate, hidden, has_bias=True)
        + 2 * norm
    )
    words = shape.vocab_size * hidden * FLOAT_BYTES[dtype]
    positions = shape.num_positions * hidden * FLOAT_BYTES["float32"]
    return words + positions + norm + shape.num_layers * layer


def _value_bytes(tensor: TensorInfo) -> int:
    return {"F64": 8, "F32": 4}.get(tensor.dtype, 2)


def _loaded_bytes(tensor: TensorInfo, value_bytes: int) -> int:
    return tensor.num_values * value_bytes if tensor.dtype in _FLOATS else tensor.num_bytes
