"""What a checkpoint's `config.json` says about a dense decoder, for the families that `native_decoder` runs.

Llama, Mistral, Qwen2 and Qwen3 are one architecture with options. Defaults and the meaning of each field are those of
transformers' classes; a configuration that asks for something else is refused with the reason. No transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flashgen_runtime.config import DType
from flashgen_runtime.engine.kernel_cache import FORMATS
from flashgen_runtime.engine.rope import Rope, UnsupportedRopeError, rope_of
from flashgen_runtime.kernels.operations import Activation

# The kernels' largest head; sizes are multiples of 4.
MAX_HEAD_SIZE = 256

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}

# Heads of keys and values where a configuration does not say; the others have one for each head of queries.
DEFAULT_KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}
DEFAULT_WINDOW = 4096
DEFAULT_MAX_WINDOW_LAYERS = 28


class UnsupportedConfigError(ValueError):
    """A configuration that is not run here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A dense decoder: RMS norms before attention and gated MLP, rotary positions, grouped-query attention."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    activation: Activation
    norm_eps: float
    rope: Rope

    # Whether these linear layers have a bias.
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool

    # Whether queries and keys are normed over each head.
    has_head_norm: bool

    # Whether the head is the embedding.
    is_head_tied: bool

    # Of each layer: tokens that a token sees, itself included; `None` for all.
    windows: tuple[int | None, ...]

    @property
    def num_layers(self) -> int:
        return len(self.windows)


def parse_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Reads `config.json`; raises `UnsupportedConfigError` with the reason why the model is not run natively."""
    family = config.get("model_type")
    if family not in ("llama", "mistral", "qwen2", "qwen3"):
        raise UnsupportedConfigError(f"models of type `{family}`")
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise UnsupportedConfigError(f"the activation `{activation}`")

    hidden_size, num_heads = read_size(config, "hidden_size"), read_size(config, "num_attention_heads")
    num_kv_heads = read_size(config, "num_key_value_heads", DEFAULT_KV_HEADS.get(family), absent=num_heads)
    head_size = read_size(config, "head_dim", 128 if family == "qwen3" else None, absent=hidden_size // num_heads)
    if head_size > MAX_HEAD_SIZE or head_size % 4:
        raise UnsupportedConfigError(f"heads of {head_size} values")
    if num_heads % num_kv_heads:
        raise UnsupportedConfigError(f"{num_heads} heads over {num_kv_heads} heads of keys and values")
    try:
        rope = rope_of(config, head_size=head_size)
    except UnsupportedRopeError as error:
        raise UnsupportedConfigError(str(error)) from error

    has_attention_bias = family in ("llama", "qwen3") and bool(config.get("attention_bias", False))
    return DecoderConfig(
        vocab_size=read_size(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=read_size(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        activation=ACTIVATIONS[activation],
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=rope,
        has_qkv_bias=family == "qwen2" or has_attention_bias,
        has_output_bias=has_attention_bias,
        has_mlp_bias=family == "llama" and bool(config.get("mlp_bias", False)),
        has_head_norm=family == "qwen3",
        is_head_tied=bool(config.get("tie_word_embeddings", False)),
        windows=_windows(family, config, num_layers=read_size(config, "num_hidden_layers")),
    )


def reason_against(config: Mapping[str, Any]) -> str | None:
    """Why a model with this `config.json` is not run natively; `None` if it is."""
    try:
        parse_config(config)
    except UnsupportedConfigError as error:
        return str(error)
    return None


def _windows(family: str, config: Mapping[str, Any], *, num_layers: int) -> tuple[int | None, ...]:
    """Mistral has one window for all layers, Qwen one for the layers of a type, Llama none."""
    window = config.get("sliding_window", DEFAULT_WINDOW)
    if family == "mistral":
        return (window,) * num_layers
    if family == "llama" or not config.get("use_sliding_window", False) or window is None:
        return (None,) * num_layers
    first = config.get("max_window_layers", DEFAULT_MAX_WINDOW_LAYERS)
    default_types = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    types = config.get("layer_types") or default_types
    if len(types) != num_layers:
        raise UnsupportedConfigError(f"`layer_types` of {len(types)} layers where there are {num_layers}")
    return tuple(window if each == "sliding_attention" else None for each in types)


def read_size(config: Mapping[str, Any], name: str, default: int | None = None, *, absent: int | None = None) -> int:
    """A positive number. `default` stands for a missing field, `absent` for one that is null as well."""
    found = config.get(name, default)
    found = absent if found is None else found
    if type(found) is not int or found < 1:
        raise UnsupportedConfigError(f"a configuration whose `{name}` is {found!r}")
    return found


def asked_dtype(config: Mapping[str, Any], dtype: DType) -> torch.dtype | None:
    """The dtype of the weights: what is asked for, else what `config.json` says, if it says one that there is."""
    name = (config.get("dtype") or config.get("torch_dtype")) if dtype == "auto" else dtype
    return next((each for each in FORMATS if dtype_name(each) == name), None)


def dtype_name(dtype: torch.dtype) -> str:
    """As configurations write it."""
    return str(dtype).removeprefix("torch.")
