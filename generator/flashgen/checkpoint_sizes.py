"""What one model takes in memory, counted from its folder: weights in `weight_sizes`, KV cache in `kv_sizes`.

The runtime counts the same before it loads a model; a test compares the two.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flashgen.checkpoints import Checkpoint
from flashgen.config_fields import HIDDEN, INTERMEDIATE, is_encoder, number, text_config
from flashgen.kv_sizes import context_limit, sequence_kv_bytes, token_kv_bytes
from flashgen.weight_sizes import weight_sizes

# Buffers of a forward pass, in vectors of the hidden size and of the MLP's for each token: generous, as some classes
# are not ours.
_HIDDEN_BUFFERS = 24
_INTERMEDIATE_BUFFERS = 3
_BUFFER_VALUE_BYTES = 4


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

    # Of a forward pass, for each of its tokens and for each row of logits.
    token_buffer_bytes: int
    logits_bytes: int

    # Tokens that a forward pass takes whatever its limit is: a text for embeddings is never cut.
    least_batched_tokens: int

    def buffer_bytes(self, *, max_num_seqs: int, max_num_batched_tokens: int) -> int:
        """Of a forward pass of the largest batch."""
        num_tokens = max(max_num_batched_tokens, self.least_batched_tokens)
        return num_tokens * self.token_buffer_bytes + max_num_seqs * self.logits_bytes

    def kv_cache_bytes(self, memory_bytes: int, *, max_num_seqs: int) -> int:
        """What its KV cache takes of the memory it may have: whole blocks, and no more than requests can fill."""
        if not self.block_kv_bytes:
            return 0
        blocks = memory_bytes // self.block_kv_bytes
        return min(blocks * self.block_kv_bytes, max_num_seqs * self.sequence_kv_bytes)


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
    # The last ones: a `quantization_config` of another form than any that is run.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return None
    token_bytes = token_kv_bytes(config, value_bytes=weights.value_bytes, kv_cache_dtype=kv_cache_dtype)
    num_tokens = max_context or context_limit(config)
    text = text_config(config)
    return CheckpointSizes(
        file_bytes=weights.file_bytes,
        weight_bytes=weights.weight_bytes,
        sequence_kv_bytes=sequence_kv_bytes(token_bytes, num_tokens=num_tokens, block_size=block_size),
        block_kv_bytes=token_bytes * block_size,
        token_buffer_bytes=_token_buffer_bytes(text),
        logits_bytes=0 if is_encoder(text) else _BUFFER_VALUE_BYTES * (number(text, ("vocab_size",)) or 0),
        least_batched_tokens=context_limit(config) if is_encoder(text) else 0,
    )


def _token_buffer_bytes(text: Mapping[str, Any]) -> int:
    hidden = number(text, HIDDEN) or 0
    intermediate = number(text, INTERMEDIATE) or 4 * hidden
    return _BUFFER_VALUE_BYTES * (_HIDDEN_BUFFERS * hidden + _INTERMEDIATE_BUFFERS * intermediate)
