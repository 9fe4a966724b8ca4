"""The checkpoints of a server: the one place of the worker that leads to torch, and only when it is asked."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from flashgen_runtime import timings
from flashgen_runtime.config import FolderSource, HubSource, ModelConfig, ServerConfig
from flashgen_runtime.messages import ModelStatus
from flashgen_runtime.models.base import ModelMemory, ServedModel

if TYPE_CHECKING:
    from flashgen_runtime.loader.access import WeightAccess

# NOTE: every import inside of a method is deferred for one reason: importing torch takes seconds, in which the worker
# already says that it loads.


class CheckpointLibrary:
    """A `Library` of folders and models of the hub."""

    def __init__(self, server: ServerConfig, models_folder: Path) -> None:
        self._server = server
        self._models_folder = models_folder

        # Of every model that was loaded once, by id.
        self._statuses: dict[str, ModelStatus] = {}

        # Of every model that was located: the folders of its draft models, by its id.
        self._draft_paths: dict[str, list[Path]] = {}

    def is_on_disk(self, config: ModelConfig) -> bool:
        return all(self._has(source) for source in (config.source, *(draft.source for draft in config.drafts)))

    def locate(self, config: ModelConfig) -> Path:
        with timings.stage("imports"):
            from flashgen_runtime.models.registry import locate_model
            from flashgen_runtime.models.speculation import draft_models

        path, *draft_paths = (
            locate_model(model, self._access, self._models_folder) for model in (config, *draft_models(config))
        )
        self._draft_paths[config.id] = draft_paths
        return path

    def measure(self, config: ModelConfig, path: Path) -> ModelMemory:
        from flashgen_runtime.models.registry import measure_model

        return measure_model(config, self._server.engine, path, self._draft_paths[config.id])

    def weight_files(self, config: ModelConfig, path: Path) -> tuple[Path, ...]:
        from flashgen_runtime.models.registry import weight_files
        from flashgen_runtime.models.speculation import draft_models

        drafts = zip(draft_models(config), self._draft_paths[config.id], strict=True)
        return tuple(
            file for model, folder in ((config, path), *drafts) for file in weight_files(model, folder, self._access)
        )

    def load(self, config: ModelConfig, path: Path) -> ServedModel:
        from flashgen_runtime.engine.threads import share_processors
        from flashgen_runtime.models.registry import load_served_model

        assert self._device_is_checked, "it raises otherwise"
        access = dataclasses.replace(self._access, starts_with_rows=self._has_room_for_rows(config, path))
        served = load_served_model(
            config, self._server.engine, path, draft_paths=self._draft_paths[config.id], access=access
        )
        self._statuses[config.id] = served.status
        # Before the engine's thread computes with it for the first time.
        torch_computes = not all(map(_runs_on_kernels, self._statuses.values()))
        share_processors(self._server.threads, torch_computes=torch_computes)
        return served

    def _has(self, source: HubSource | FolderSource) -> bool:
        if isinstance(source, FolderSource):
            return True
        return self._access.store.find(source.repository, source.revision) is not None

    def _has_room_for_rows(self, config: ModelConfig, path: Path) -> bool:
        """Whether there is memory for a checkpoint's own rows, and copies on their way, beside the prepared weights."""
        if len(self._server.models) > 1:
            return False
        memory = self.measure(config, path)
        return memory.total_bytes + 2 * memory.weight_bytes <= self._server.memory_bytes

    @cached_property
    def _access(self) -> "WeightAccess":
        with timings.stage("imports"):
            from flashgen_runtime.loader.access import WeightAccess

        return WeightAccess.of(self._server.weights)

    @cached_property
    def _device_is_checked(self) -> bool:
        """Sets torch up, once; raises `DeviceError`."""
        from flashgen_runtime.engine.threads import share_processors
        from flashgen_runtime.loader.device import check_device

        share_processors(self._server.threads, torch_computes=True)
        for model in self._server.models:
            check_device(self._server.requirements, model.device)
        return True


def _runs_on_kernels(status: ModelStatus) -> bool:
    return status.path in ("native", "paged") and status.kernels != "torch"
