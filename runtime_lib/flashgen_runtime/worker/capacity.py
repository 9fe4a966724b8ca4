"""Whether a server's models can fit: what is refused at start, before anything is loaded."""

from collections.abc import Sequence

from flashgen_runtime.config import ModelConfig, ServerConfig
from flashgen_runtime.errors import ConfigError
from flashgen_runtime.worker.residency import Slot


def planned_bytes(config: ModelConfig) -> int:
    """What a model takes at least with its draft models, as far as the compiler could tell."""
    draft_bytes = sum(draft.weight_bytes or 0 for draft in config.drafts)
    return (config.weight_bytes or 0) + draft_bytes + (config.sequence_kv_bytes or 0)


def check_fits(config: ModelConfig, num_bytes: int, server: ServerConfig) -> None:
    """Raises `ConfigError` if a model is larger than the memory for all of them."""
    if num_bytes > server.memory_bytes:
        problem = (
            f"takes {num_bytes} bytes with its KV cache and can never fit: "
            f"the server `{server.name}` has {server.memory_bytes} for all models"
        )
        raise ConfigError(f"model `{config.id}`", problem)


def check_preload(preload: Sequence[Slot], server: ServerConfig) -> None:
    """Raises `ConfigError` where the preloaded models, as far as they are known, cannot be loaded together."""
    place = f"server `{server.name}`"
    if len(preload) > server.swap.max_loaded:
        raise ConfigError(place, f"{len(preload)} models are preloaded, `max_loaded` is {server.swap.max_loaded}")
    num_bytes = sum(slot.num_bytes for slot in preload)
    if num_bytes > server.memory_bytes:
        raise ConfigError(place, f"the preloaded models take {num_bytes} bytes, there are {server.memory_bytes}")
