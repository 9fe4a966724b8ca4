"""What a worker asks of a loaded model, whatever its task. Free of torch."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flashgen_runtime.config import ModelConfig
from flashgen_runtime.messages import ModelStatus, Reply, WorkRequest


class ModelMemory(NamedTuple):
    """What a loaded model takes at most, in bytes: of the device, or of the host without one."""

    weight_bytes: int
    kv_cache_bytes: int

    # Buffers of a forward pass.
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(self)


class ServedModel(Protocol):
    """A model that takes requests and answers them step by step."""

    @property
    def status(self) -> ModelStatus:
        """What callers may know about it."""

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""

    @property
    def seconds_until_work(self) -> float | None:
        """While it has no work: after what time it has some even if nothing is added; `None` for never."""

    def prepare(self, request: WorkRequest) -> Any:
        """Encodes a request: the part that may run beside `step`, in another thread.

        Returns what `add` takes. Raises `RequestError` for a request that this model cannot serve.
        """

    def add(self, prepared: Any) -> None:
        """Queues what `prepare` made; raises `RequestError` if it can never fit."""

    def step(self) -> list[Reply]:
        """Does one step of work for everything that was added."""

    def abort(self, request_id: str) -> None:
        """Ends a request and frees what it holds; an unknown id is ignored."""

    def close(self) -> None:
        """Gives back all memory, when no request is open and nobody steps it any more."""


class Library(Protocol):
    """Where a worker's models come from. Every call blocks, and may run in any thread."""

    def is_on_disk(self, config: ModelConfig) -> bool:
        """Whether `locate` would find the checkpoint, or what is wrong with it, without fetching anything."""

    def locate(self, config: ModelConfig) -> Path:
        """The folder of a model's checkpoint, fetched if need be: takes disk, no memory.

        Raises `WeightsError` or `DownloadError`.
        """

    def measure(self, config: ModelConfig, path: Path) -> ModelMemory:
        """What the model will take when it is loaded, from its configuration and headers.

        Raises `WeightsError` or `ConfigError`.
        """

    def weight_files(self, config: ModelConfig, path: Path) -> tuple[Path, ...]:
        """The files that `load` reads, which the host may keep in memory."""

    def load(self, config: ModelConfig, path: Path) -> ServedModel:
        """Loads it; raises `WeightsError`, `ConfigError` or `DeviceError`, and then holds no memory."""
