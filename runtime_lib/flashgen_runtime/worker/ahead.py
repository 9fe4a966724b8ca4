"""What a fork server does once for all of its workers: imports, and tokenizers of the models that are loaded at start.

Nothing here computes, encodes, starts a thread or touches a device (see `worker.fork_server`).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from flashgen_runtime import timings
from flashgen_runtime.config import FolderSource, ModelConfig, ServerConfig
from flashgen_runtime.errors import ServingError
from flashgen_runtime.logs import fields

if TYPE_CHECKING:
    from flashgen_runtime.loader.access import WeightAccess

log = logging.getLogger(__name__)

# NOTE: every import inside of a function is deferred because it takes seconds, and threads unless it is told otherwise.

_FOR_ALL = ("flashgen_runtime.loader.access", "flashgen_runtime.loader.device", "flashgen_runtime.models.registry")
_FOR_NATIVE_DECODERS = ("flashgen_runtime.engine.native_decoder",)
_FOR_TRANSFORMERS = (
    "flashgen_runtime.engine.model_runner",
    "flashgen_runtime.engine.plain_runner",
    "flashgen_runtime.engine.probe",
    "flashgen_runtime.loader.materialize",
)


def work_ahead(server: ServerConfig, models_folder: Path) -> None:
    """Imports what the models of a server need, and reads the tokenizers that can be read without transformers."""
    with timings.stage("imports"):
        _import_torch()
        for name in _FOR_ALL:
            import_module(name)
    from flashgen_runtime.loader.access import WeightAccess

    access = WeightAccess.of(server.weights)
    for model in server.models:
        try:
            _work_ahead_for(model, access, models_folder, is_preloaded=model.id in server.swap.preload)
        except (ServingError, OSError) as error:
            # The worker will say it where everybody hears it.
            log.debug("not prepared", extra=fields(model=model.id, reason=error))


def _import_torch() -> None:
    # Or an import of a library that asks for cards would initialise CUDA.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # numpy's OpenBLAS starts its threads when it is loaded; nothing here multiplies with it.
    with _environment("OPENBLAS_NUM_THREADS", "1"):
        import numpy  # noqa: F401 -- for its effect
    import torch

    torch.set_num_threads(1)


def _work_ahead_for(model: ModelConfig, access: "WeightAccess", models_folder: Path, *, is_preloaded: bool) -> None:
    path = _path_on_disk(model, access, models_folder)
    if path is None:
        return
    with timings.stage("imports"):
        for name in _modules_of(model, path):
            import_module(name)
    if not is_preloaded:
        return
    from flashgen_runtime.loader.tokenizer_cache import read_ahead

    with timings.stage("tokenizer"):
        read_ahead(path, access.store.root)


def _path_on_disk(model: ModelConfig, access: "WeightAccess", models_folder: Path) -> Path | None:
    """The checkpoint's folder if it is there without fetching anything."""
    if isinstance(model.source, FolderSource):
        return models_folder / model.source.folder
    stored = access.store.find(model.source.repository, model.source.revision)
    return None if stored is None else stored.path


def _modules_of(model: ModelConfig, path: Path) -> tuple[str, ...]:
    """What `engine.paths` imports for it."""
    from flashgen_runtime.engine.native_config import reason_against
    from flashgen_runtime.loader.checkpoint import read_json

    if model.task == "feature-extraction":
        # Our encoder is among the imports for all.
        return ()
    is_native = model.device == "cpu" and reason_against(read_json(path / "config.json")) is None
    return _FOR_NATIVE_DECODERS if is_native else _FOR_TRANSFORMERS


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable that is not set yet, for what runs inside."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
