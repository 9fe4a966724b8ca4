"""What a checkpoint's `config.json` says about an encoder of the BERT family. No transformers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashgen_runtime.engine.native_config import ACTIVATIONS, MAX_HEAD_SIZE, UnsupportedConfigError, read_size
from flashgen_runtime.kernels.operations import Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """An encoder with learned positions and layer norms after attention and MLP."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    num_positions: int
    num_token_types: int
    activation: Activation
    norm_eps: float


def parse_encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Reads `config.json`; raises `UnsupportedConfigError` with the reason why the model is not run natively."""
    if (family := config.get("model_type")) != "bert":
        raise UnsupportedConfigError(f"models of type `{family}`")
    if "quantization_config" in config:
        raise UnsupportedConfigError("quantised checkpoints")
    if (kind := config.get("position_embedding_type", "absolute")) != "absolute":
        raise UnsupportedConfigError(f"positions of type `{kind}`")
    if config.get("is_decoder"):
        raise UnsupportedConfigError("decoders of the BERT family")
    if (activation := config.get("hidden_act", "gelu")) not in ACTIVATIONS:
        raise UnsupportedConfigError(f"the activation `{activation}`")
    hidden_size, num_heads = read_size(config, "hidden_size", 768), read_size(config, "num_attention_heads", 12)
    head_size = hidden_size // num_heads
    if head_size * num_heads != hidden_size or head_size > MAX_HEAD_SIZE or head_size % 4:
        raise UnsupportedConfigError(f"{num_heads} heads over {hidden_size} values")
    return EncoderConfig(
        vocab_size=read_size(config, "vocab_size", 30522),
        hidden_size=hidden_size,
        intermediate_size=read_size(config, "intermediate_size", 3072),
        num_heads=num_heads,
        num_layers=read_size(config, "num_hidden_layers", 12),
        num_positions=read_size(config, "max_position_embeddings", 512),
        num_token_types=read_size(config, "type_vocab_size", 2),
        activation=ACTIVATIONS[activation],
        norm_eps=float(config.get("layer_norm_eps", 1e-12)),
    )
