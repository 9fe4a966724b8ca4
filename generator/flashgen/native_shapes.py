"""Sizes of the architectures that the runtime runs with classes of its own, from `config.json`.

The same reading as in the runtime's `engine/native_config.py` and `engine/native_encoder.py`: a configuration that they
refuse is `None` here, and its model is counted as transformers keeps it. A test compares the sizes that follow.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

_DECODER_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_ACTIVATIONS = frozenset({"silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"})
_DEFAULT_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
_MAX_HEAD_SIZE = 256

# Kinds of rotary embeddings, with the parameters that each needs.
_ROPE_PARAMETERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}

# These also need the context before it was extended.
_ROPE_WITH_CONTEXT = frozenset({"llama3", "yarn"})


class DecoderShape(NamedTuple):
    """A dense decoder: gated MLP, grouped-query attention."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool

    # Whether queries and keys are normed over each head.
    has_head_norm: bool
    is_head_tied: bool


class EncoderShape(NamedTuple):
    """An encoder of the BERT family."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_positions: int


class _UnsupportedError(ValueError):
    """Not run natively."""


def decoder_shape(config: Mapping[str, Any]) -> DecoderShape | None:
    """Of a checkpoint that the native decoder runs."""
    try:
        return _decoder_shape(config)
    except _UnsupportedError:
        return None


def encoder_shape(config: Mapping[str, Any]) -> EncoderShape | None:
    """Of a checkpoint that the native encoder runs."""
    try:
        return _encoder_shape(config)
    except _UnsupportedError:
        return None


def _decoder_shape(config: Mapping[str, Any]) -> DecoderShape:
    family = config.get("model_type")
    _require(family in _DECODER_FAMILIES)
    _require(config.get("hidden_act", "silu") in _ACTIVATIONS)
    hidden_size, num_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    num_kv_heads = _size(config, "num_key_value_heads", _DEFAULT_KV_HEADS.get(str(family)), absent=num_heads)
    head_size = _size(config, "head_dim", 128 if family == "qwen3" else None, absent=hidden_size // num_heads)
    _require(head_size <= _MAX_HEAD_SIZE and head_size % 4 == 0 and num_heads % num_kv_heads == 0)
    _require(_has_known_rope(config))
    num_layers = _size(config, "num_hidden_layers")
    if family in ("qwen2", "qwen3") and config.get("use_sliding_window", False) and config.get("layer_types"):
        _require(len(config["layer_types"]) == num_layers)
    has_attention_bias = family in ("llama", "qwen3") and bool(config.get("attention_bias", False))
    return DecoderShape(
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_size(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        has_qkv_bias=family == "qwen2" or has_attention_bias,
        has_output_bias=has_attention_bias,
        has_mlp_bias=family == "llama" and bool(config.get("mlp_bias", False)),
        has_head_norm=family == "qwen3",
        is_head_tied=bool(config.get("tie_word_embeddings", False)),
    )


def _encoder_shape(config: Mapping[str, Any]) -> EncoderShape:
    _require(config.get("model_type") == "bert" and "quantization_config" not in config)
    _require(config.get("position_embedding_type", "absolute") == "absolute" and not config.get("is_decoder"))
    _require(config.get("hidden_act", "gelu") in _ACTIVATIONS)
    hidden_size, num_heads = _size(config, "hidden_size", 768), _size(config, "num_attention_heads", 12)
    head_size = hidden_size // num_heads
    _require(head_size * num_heads == hidden_size and head_size <= _MAX_HEAD_SIZE and head_size % 4 == 0)
    return EncoderShape(
        vocab_size=_size(config, "vocab_size", 30522),
        hidden_size=hidden_size,
        intermediate_size=_size(config, "intermediate_size", 3072),
        num_layers=_size(config, "num_hidden_layers", 12),
        num_positions=_size(config, "max_position_embeddings", 512),
    )


def _has_known_rope(config: Mapping[str, Any]) -> bool:
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    parameters = {name: value for name, value in given.items() if value is not None}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if any(isinstance(value, Mapping) for value in parameters.values()) or partial not in (None, 1):
        return False
    if kind not in _ROPE_PARAMETERS or not parameters.keys() >= set(_ROPE_PARAMETERS[kind]):
        return False
    contexts = ("original_max_position_embeddings", "max_position_embeddings")
    has_context = any(config.get(name) for name in contexts) or bool(parameters.get(contexts[0]))
    return has_context or kind not in _ROPE_WITH_CONTEXT


def _size(config: Mapping[str, Any], name: str, default: int | None = None, *, absent: int | None = None) -> int:
    """A positive number. `default` stands for a missing field, `absent` for one that is null as well."""
    found = config.get(name, default)
    found = absent if found is None else found
    if type(found) is not int or found < 1:
        raise _UnsupportedError(name)
    return found


def _require(condition: bool) -> None:  # noqa: FBT001  # reads as the rule that it is
    if not condition:
        raise _UnsupportedError
