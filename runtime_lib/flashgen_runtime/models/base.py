"""What a worker asks of a loaded model, whatever its task. Free of torch."""

from typing import Any, Protocol

from flashgen_runtime.messages import ModelStatus, Reply, WorkRequest


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
