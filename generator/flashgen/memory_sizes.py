"""The memory that a worker's loaded models share, and what the KV cache of each of them gets of it."""

from typing import NamedTuple

from flashgen.quantities import human_bytes
from flashgen.sizing import ResolvedResources, weight_bound

# Python, torch and transformers, and on a card the driver's context; a small worker gives them half at most.
PROCESS_BYTES = 2**30


class MemoryBudget(NamedTuple):
    """For the weights, KV caches and buffers of all loaded models together."""

    num_bytes: int
    reason: str


def memory_budget(resources: ResolvedResources) -> MemoryBudget:
    """Of the card that the server's models are on, or of the worker's memory where they are on none."""
    bound, name = weight_bound(resources)
    process_bytes = min(PROCESS_BYTES, bound // 2)
    return MemoryBudget(
        num_bytes=bound - process_bytes,
        reason=f"the {human_bytes(bound)} of {name} without {human_bytes(process_bytes)} for the process itself",
    )
