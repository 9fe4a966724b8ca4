"""Numbers in a checkpoint's `config.json`, under the names that the families of models have for them."""

from collections.abc import Mapping
from typing import Any

LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
HEADS = ("num_attention_heads", "n_head", "num_heads")
HIDDEN = ("hidden_size", "n_embd", "d_model")
INTERMEDIATE = ("intermediate_size", "n_inner", "d_ff")
CONTEXT = ("max_position_embeddings", "n_positions")


def number(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of the fields that holds a positive number."""
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the part that generates text, in a model that has several."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether the runtime loads the model as an encoder, which makes embeddings."""
    return config.get("model_type") == "bert"
