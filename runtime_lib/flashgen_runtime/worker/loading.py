"""Loads real models: the one place of the worker that leads to torch, and only when the first model is loaded."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from flashgen_runtime.config import ModelConfig, ServerConfig
from flashgen_runtime.models.base import ServedModel


def model_loader(server: ServerConfig, models_folder: Path) -> Callable[[ModelConfig], ServedModel]:
    """What `ModelManager` takes as `load`; raises `ConfigError`, `WeightsError` or `DeviceError`."""

    @cache
    def set_up_torch() -> None:
        # Deferred: importing torch takes seconds, in which the worker already says that it loads.
        import torch

        from flashgen_runtime.loader.device import check_device

        torch.set_num_threads(server.threads)
        for model in server.models:
            check_device(server.requirements, model.device)

    def load(model: ModelConfig) -> ServedModel:
        set_up_torch()
        # Deferred for the same reason.
        from flashgen_runtime.models.registry import load_served_model

        return load_served_model(model, server.engine, models_folder)

    return load
