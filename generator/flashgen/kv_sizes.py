"""Bytes of the KV cache of one sequence, from `config.json`. The runtime counts the same and compares.

A token takes a key and a value in every layer for each of its heads, in the model's dtype or in int8, which has two
float32 scales beside it for each head; a sequence takes whole blocks. 0 for encoders, and for what keeps no keys.
"""

from collections.abc import Mapping
from typing import Any

from flashgen.config_fields import CONTEXT, HEADS, HIDDEN, LAYERS, is_encoder, number, text_config
from flashgen.native_shapes import decoder_shape

# Of a checkpoint that does not say how many positions it has.
ASSUMED_CONTEXT = 4096

_SCALES_BYTES = 2 * 4


def context_limit(config: Mapping[str, Any]) -> int:
    """Tokens that a checkpoint has positions for, or an assumption."""
    return number(text_config(config), CONTEXT) or ASSUMED_CONTEXT


def token_kv_bytes(config: Mapping[str, Any], *, value_bytes: int, kv_cache_dtype: str) -> int:
    """Bytes of one token's keys and values in all layers.

    Args:
        config: the checkpoint's `config.json`.
        value_bytes: of one value in the model's dtype.
        kv_cache_dtype: "int8", or "auto" for the model's dtype.
    """
    if is_encoder(config):
        return 0
    num_heads, head_size = _kv_heads(text_config(config))
    head_bytes = 2 * head_size + _SCALES_BYTES if kv_cache_dtype == "int8" else 2 * head_size * value_bytes
    return num_heads * head_bytes


def sequence_kv_bytes(token_bytes: int, *, num_tokens: int, block_size: int) -> int:
    """Bytes of a sequence, in whole blocks."""
    return -(-num_tokens // block_size) * block_size * token_bytes


def _kv_heads(config: Mapping[str, Any]) -> tuple[int, int]:
    """Heads of keys and values in all layers together, and the size of one."""
    if (native := decoder_shape(config)) is not None:
        return native.num_layers * native.num_kv_heads, native.head_size
    num_layers, num_heads = number(config, LAYERS), number(config, HEADS)
    if num_layers is None or num_heads is None:
        return 0, 0
    is_multi_query = config.get("model_type") == "gpt_bigcode" and bool(config.get("multi_query", True))
    num_kv_heads = 1 if is_multi_query else number(config, ("num_key_value_heads",)) or num_heads
    head_size = number(config, ("head_dim",)) or (number(config, HIDDEN) or 0) // num_heads
    return num_layers * num_kv_heads, head_size
