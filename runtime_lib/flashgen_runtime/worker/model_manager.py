"""Which models a worker serves, and who uses them: loads them in order, leases them by name, counts the leases."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from flashgen_runtime.config import ModelConfig
from flashgen_runtime.errors import ConfigError, RequestError
from flashgen_runtime.logs import fields
from flashgen_runtime.messages import ModelStatus
from flashgen_runtime.models.base import ServedModel

log = logging.getLogger(__name__)


class ModelManager:
    """The models of one worker.

    Args:
        configs: the models in the order in which they are loaded; their ids and aliases are all different.
        load: makes a served model; takes as long as reading the weights does.
    """

    def __init__(self, configs: Sequence[ModelConfig], load: Callable[[ModelConfig], ServedModel]) -> None:
        self._configs = tuple(configs)
        self._load = load
        self._ids = _ids_by_name(self._configs)
        self._models: dict[str, ServedModel] = {}
        self._leases: dict[str, int] = dict.fromkeys(self._ids.values(), 0)

    def load_all(self) -> None:
        """Loads every model, in order. Blocks; may run in any thread, once. Raises what `load` raises."""
        for config in self._configs:
            log.info("loading", extra=fields(model=config.id))
            began = time.monotonic()
            model = self._load(config)
            _log_loaded(model.status, seconds=time.monotonic() - began)
            self._models[config.id] = model

    @property
    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model, loaded or not; what only loading tells is missing until then."""
        return tuple(self._status(config) for config in self._configs)

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[ServedModel]:
        """The model with this id or alias, which stays loaded while the context lasts.

        Raises:
            RequestError: no model has that name, or it is not loaded yet.
        """
        model_id = self._ids.get(name)
        if model_id is None:
            known = ", ".join(f"`{known}`" for known in self._ids)
            raise RequestError(
                f"the model `{name}` is not served here, only {known}", kind="unknown_model", param="model"
            )
        model = self._models.get(model_id)
        if model is None:
            raise RequestError(f"the model `{name}` is still loading", kind="unavailable")
        self._leases[model_id] += 1
        try:
            yield model
        finally:
            self._leases[model_id] -= 1

    def num_leases(self, name: str) -> int:
        """Requests that hold the model now; `name` is one of its names."""
        return self._leases[self._ids[name]]

    def _status(self, config: ModelConfig) -> ModelStatus:
        model = self._models.get(config.id)
        if model is not None:
            return model.status
        return ModelStatus(id=config.id, aliases=config.aliases, task=config.task)


def _ids_by_name(configs: tuple[ModelConfig, ...]) -> dict[str, str]:
    ids: dict[str, str] = {}
    for config in configs:
        for name in (config.id, *config.aliases):
            if ids.setdefault(name, config.id) != config.id:
                raise ConfigError("service.yaml", f"the models `{ids[name]}` and `{config.id}` share the name `{name}`")
    return ids


def _log_loaded(status: ModelStatus, *, seconds: float) -> None:
    what = {
        "model": status.id,
        "task": status.task,
        "dtype": status.dtype,
        "quantization": status.quantization,
        "path": status.path,
        "path_reason": status.path_reason,
        "kv_cache_dtype": status.kv_cache_dtype,
        "kernels": status.kernels,
        "max_context": status.max_context,
        "chat_template": status.chat_template,
        "seconds": f"{seconds:.1f}",
    }
    # Not every task has all of them.
    log.info("loaded", extra=fields(**{name: value for name, value in what.items() if value != ""}))
    if status.task == "text-generation" and status.chat_template == "none":
        log.info("no chat template: message contents are joined by newlines", extra=fields(model=status.id))
