"""The halves of moving a model that block: each runs in a thread of its own."""

from pathlib import Path
from typing import NamedTuple

from flashgen_runtime.config import ModelConfig
from flashgen_runtime.models.base import Library, ModelMemory, ServedModel
from flashgen_runtime.worker.freeing import close_model
from flashgen_runtime.worker.host_cache import HostCache


class Found(NamedTuple):
    """A checkpoint on the disk, and what its model takes."""

    path: Path
    memory: ModelMemory


def find(library: Library, config: ModelConfig) -> Found:
    """Fetches a checkpoint if need be, and measures it; raises `ServingError`."""
    path = library.locate(config)
    return Found(path, library.measure(config, path))


def load(library: Library, cache: HostCache, config: ModelConfig, path: Path) -> ServedModel:
    """Loads a model, whose files are its own from then on; raises what the library raises."""
    cache.take(config.id, library.weight_files(config, path))
    try:
        model = library.load(config, path)
    except BaseException:
        cache.give_back(config.id)
        raise
    # A first load may have made files that later ones read instead.
    cache.replace(config.id, library.weight_files(config, path))
    return model


def free(last_reference: list[ServedModel], cache: HostCache, model_id: str) -> None:
    """Closes a model, as `close_model` does, and leaves its files to the cache."""
    close_model(last_reference)
    # Only now, since pages that are mapped cannot be dropped.
    cache.give_back(model_id)
