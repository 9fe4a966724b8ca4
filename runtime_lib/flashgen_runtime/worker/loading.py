"""Loads real models: the one place of the worker that leads to torch, and only when the first model is loaded."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from flashgen_runtime.config import ModelConfig, ServerConfig
from flashgen_runtime.messages import ModelStatus
from flashgen_runtime.models.base import ServedModel


def model_loader(server: ServerConfig, models_folder: Path) -> Callable[[ModelConfig], ServedModel]:
    """What `ModelManager` takes as `load`; raises `ConfigError`, `WeightsError` or `DeviceError`."""

    statuses: list[ModelStatus] = []

    @cache
    def set_up_torch() -> None:
        # Deferred: importing torch takes seconds, in which the worker already says that it loads.
        from flashgen_runtime.engine.threads import share_processors
        from flashgen_runtime.loader.device import check_device

        share_processors(server.threads, torch_computes=True)
        for model in server.models:
            check_device(server.requirements, model.device)

    def load(model: ModelConfig) -> ServedModel:
        set_up_torch()
        # Deferred for the same reason.
        from flashgen_runtime.engine.threads import share_processors
        from flashgen_runtime.models.registry import load_served_model

        served = load_served_model(model, server.engine, models_folder)
        statuses.append(served.status)
        # Before the engine's thread computes for the first time.
        share_processors(server.threads, torch_computes=not all(map(_runs_on_kernels, statuses)))
        return served

    return load


def _runs_on_kernels(status: ModelStatus) -> bool:
    return status.path in ("native", "paged") and status.kernels != "torch"
