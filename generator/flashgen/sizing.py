"""Sizes of a server from its declared resources: arithmetic only, each number with the reason that stands beside it.

What weights and KV caches take of its memory is in `memory_sizes`.
"""

from math import ceil
from typing import NamedTuple

from flashgen.quantities import human_bytes

DEFAULT_CPUS = 2.0
DEFAULT_MEMORY_BYTES = 4 * 2**30

# The smallest card of current data centres (T4, 16 GB), for a spec that asks for a card without saying which.
ASSUMED_GPU_MEMORY_BYTES = 16 * 10**9

BLOCK_SIZE = 32

# Requests that decode together: each shares the reading of the weights with all others.
MAX_NUM_SEQS = 64

# Tokens of one forward pass: a card is busy only with many.
MAX_NUM_BATCHED_TOKENS = {"cpu": 512, "cuda": 2048}

# Assumed speed at which weights arrive, in bytes per second.
_HUB_BANDWIDTH = 50 * 10**6
_DISK_BANDWIDTH = 200 * 10**6

# Python, torch and the first forward pass.
_START_ALLOWANCE_SECONDS = 60

# A request may have to wait for others to end before there is room for its model.
_LEAST_LOAD_TIMEOUT_SECONDS = 60

# Kubernetes takes about two seconds to stop sending requests to a pod that ends.
_PRE_STOP_SECONDS = 5
_DRAIN_SECONDS = 30
_EXIT_MARGIN_SECONDS = 10


class ResolvedResources(NamedTuple):
    """What one worker gets; quantities as Kubernetes and compose write them are derived in templates by filters."""

    cpus: float
    memory_bytes: int
    gpus: int
    gpu_memory_bytes: int | None
    gpu_cuda_capability: tuple[int, int] | None


class EngineSizes(NamedTuple):
    """Limits of one worker's batches, and the reasons that stand beside them as comments."""

    max_num_seqs: int
    max_num_seqs_reason: str
    max_num_batched_tokens: int
    max_num_batched_tokens_reason: str
    block_size: int
    block_size_reason: str

    # 0 for a server whose models keep no KV cache.
    kv_cache_bytes: int
    kv_cache_reason: str


class Shutdown(NamedTuple):
    """How one process ends, in seconds, in this order; the grace period is longer than all of it together."""

    # Between leaving the list of endpoints and the signal.
    pre_stop_seconds: int

    # For the requests that are open.
    drain_seconds: int
    termination_grace_seconds: int
    termination_grace_reason: str


def engine_sizes(
    resources: ResolvedResources,
    *,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    block_size: int | None = None,
) -> EngineSizes:
    """Limits of a worker's batches: as the spec says, else from the resources. Without a KV cache, for now."""
    requests = _max_num_seqs(max_num_seqs, max_num_batched_tokens)
    tokens = _max_num_batched_tokens(resources, max_num_seqs, max_num_batched_tokens)
    return EngineSizes(
        max_num_seqs=requests[0],
        max_num_seqs_reason=requests[1],
        max_num_batched_tokens=tokens[0],
        max_num_batched_tokens_reason=tokens[1],
        block_size=block_size or BLOCK_SIZE,
        block_size_reason="tokens per block of the KV cache",
        kv_cache_bytes=0,
        kv_cache_reason="its models keep no KV cache",
    )


def threads(cpus: float) -> tuple[int, str]:
    """CPU threads for tensor operations, and why."""
    number = max(1, ceil(cpus))
    return number, f"one per processor of the {cpus:g} in `resources.cpus`"


def startup_budget(
    resources: ResolvedResources, *, from_hub: bool, fillings: int = 1, file_bytes: int | None = None
) -> tuple[int, str]:
    """Seconds that a worker may take until it is ready, and why.

    Args:
        resources: of the worker.
        from_hub: whether it may have to download.
        fillings: how many times what is downloaded may fill its memory.
        file_bytes: of the models that it loads at start, where that is known.
    """
    bandwidth = _HUB_BANDWIDTH if from_hub else _DISK_BANDWIDTH
    if file_bytes is not None:
        num_bytes, weights = file_bytes, f"{human_bytes(file_bytes)} of weights"
    else:
        bound, name = weight_bound(resources)
        times = f" {fillings} times" if fillings > 1 else ""
        num_bytes, weights = bound * fillings, f"weights that fill {human_bytes(bound)} of {name}{times}"
    seconds = _START_ALLOWANCE_SECONDS + 2 * ceil(num_bytes / bandwidth)
    source = "download" if from_hub else "read"
    reason = (
        f"{_START_ALLOWANCE_SECONDS} s to start + twice the time to {source} {weights} at {bandwidth // 10**6} MB/s"
    )
    return seconds, reason


def load_timeout(resources: ResolvedResources, *, file_bytes: int | None = None) -> tuple[int, str]:
    """Seconds that a request may wait for its model to be loaded, and why.

    Args:
        resources: of the worker.
        file_bytes: of the largest model, where all are known.
    """
    bound, name = weight_bound(resources)
    weights = f"weights that fill {human_bytes(bound)} of {name}"
    if file_bytes is not None:
        bound, weights = file_bytes, f"the largest model's {human_bytes(file_bytes)}"
    seconds = max(_LEAST_LOAD_TIMEOUT_SECONDS, 2 * ceil(bound / _DISK_BANDWIDTH))
    reason = (
        f"twice the time to read {weights} at {_DISK_BANDWIDTH // 10**6} MB/s, "
        f"and at least {_LEAST_LOAD_TIMEOUT_SECONDS} s"
    )
    return seconds, reason


def shutdown() -> Shutdown:
    """How long a process takes to end; the grace period is strictly longer."""
    needed = _PRE_STOP_SECONDS + _DRAIN_SECONDS + _EXIT_MARGIN_SECONDS
    grace = needed + 5
    return Shutdown(
        pre_stop_seconds=_PRE_STOP_SECONDS,
        drain_seconds=_DRAIN_SECONDS,
        termination_grace_seconds=grace,
        termination_grace_reason=(
            f"longer than {_PRE_STOP_SECONDS} s to leave the endpoints + {_DRAIN_SECONDS} s to drain "
            f"+ {_EXIT_MARGIN_SECONDS} s to exit"
        ),
    )


def weight_bound(resources: ResolvedResources) -> tuple[int, str]:
    """The memory that weights and KV cache share, and what it is called."""
    if resources.gpus:
        return resources.gpu_memory_bytes or ASSUMED_GPU_MEMORY_BYTES, "GPU memory"
    return resources.memory_bytes, "memory"


def _max_num_seqs(declared: int | None, max_num_batched_tokens: int | None) -> tuple[int, str]:
    if declared is not None:
        return declared, "as `engine.batching.max_requests` says"
    if max_num_batched_tokens is not None and max_num_batched_tokens < MAX_NUM_SEQS:
        return max_num_batched_tokens, "each needs one of the tokens of a forward pass"
    return MAX_NUM_SEQS, "more at once share the reading of the weights, and wait longer for each other"


def _max_num_batched_tokens(
    resources: ResolvedResources, max_num_seqs: int | None, declared: int | None
) -> tuple[int, str]:
    if declared is not None:
        return declared, "as `engine.batching.max_tokens` says"
    device = "cuda" if resources.gpus else "cpu"
    if max_num_seqs is not None and max_num_seqs > MAX_NUM_BATCHED_TOKENS[device]:
        return max_num_seqs, "one for each request that decodes"
    reason = _by_device(
        device,
        cpu="a longer prompt is read in parts, so that others' tokens keep coming",
        cuda="saturates a card; a longer prompt is read in parts",
    )
    return MAX_NUM_BATCHED_TOKENS[device], reason


def _by_device(device: str, *, cpu: str, cuda: str) -> str:
    return cuda if device == "cuda" else cpu
