"""What a model takes in memory, counted from its checkpoint without loading it."""

from typing import NamedTuple


class CheckpointSizes(NamedTuple):
    """Bytes of one model."""

    # Of the files with weights.
    file_bytes: int

    # Of the weights as they run.
    weight_bytes: int

    # Of the KV cache of one sequence as long as the model's context; 0 for a model that keeps none.
    sequence_kv_bytes: int
