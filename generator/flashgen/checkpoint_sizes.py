"""What one model takes in memory, counted from its folder: weights in `weight_sizes`, KV cache in `kv_sizes`."""

from typing import NamedTuple

from flashgen.checkpoints import Checkpoint
from flashgen.kv_sizes import context_limit, sequence_kv_bytes, token_kv_bytes
from flashgen.weight_sizes import weight_sizes


class CheckpointSizes(NamedTuple):
    """Bytes of one model."""

    # Of the data in its files.
    file_bytes: int

    # Of the weights as they run.
    weight_bytes: int

    # Of the KV cache of a sequence as long as the spec's `max_context`, else as the checkpoint's; 0 for embeddings.
    sequence_kv_bytes: int

    # Of the shortest sequence that can be served: one block.
    block_kv_bytes: int


def checkpoint_sizes(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    quantization: str | None,
    is_on_card: bool,
    kv_cache_dtype: str,
    max_context: int | None,
    block_size: int,
) -> CheckpointSizes | None:
    """The sizes of a model; `None` where its files cannot be counted, which the runtime says when it loads them."""
    config = checkpoint.config
    try:
        weights = weight_sizes(checkpoint.folder, config, dtype=dtype, quantization=quantization, is_on_card=is_on_card)
    except (OSError, ValueError):
        return None
    token_bytes = token_kv_bytes(config, value_bytes=weights.value_bytes, kv_cache_dtype=kv_cache_dtype)
    num_tokens = max_context or context_limit(config)
    return CheckpointSizes(
        file_bytes=weights.file_bytes,
        weight_bytes=weights.weight_bytes,
        sequence_kv_bytes=sequence_kv_bytes(token_bytes, num_tokens=num_tokens, block_size=block_size),
        block_kv_bytes=token_bytes * block_size,
    )
