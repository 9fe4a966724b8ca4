"""The requests that a worker has accepted and not yet answered, by id and by API server."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator

from flashgen_runtime.models.base import ServedModel


class OpenRequest:
    """One request between its arrival and its final reply."""

    __slots__ = ("completion_tokens", "finished", "model", "request_id", "server_id", "task")

    def __init__(self, request_id: str, server_id: bytes) -> None:
        self.request_id = request_id
        self.server_id = server_id

        # What serves it, until the final reply is on its way.
        self.task: asyncio.Task[None] | None = None

        # The model that has it in its engine, how far each choice is, and the wait for the final reply.
        self.model: ServedModel | None = None
        self.completion_tokens: defaultdict[int, int] = defaultdict(int)
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(self) -> None:
        """The final reply has passed."""
        if not self.finished.done():
            self.finished.set_result(None)

    def cancel(self) -> None:
        """Nobody waits for an answer any more."""
        if self.task is not None:
            self.task.cancel()


class OpenRequests:
    """The open requests of all API servers."""

    def __init__(self) -> None:
        self._requests: dict[str, OpenRequest] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[OpenRequest]:
        return iter(tuple(self._requests.values()))

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def add(self, request: OpenRequest) -> None:
        self._requests[request.request_id] = request

    def get(self, request_id: str) -> OpenRequest | None:
        return self._requests.get(request_id)

    def remove(self, request: OpenRequest) -> None:
        """Forgets a request; one that is forgotten already is ignored."""
        if self._requests.get(request.request_id) is request:
            del self._requests[request.request_id]

    def of_server(self, server_id: bytes) -> list[OpenRequest]:
        return [request for request in self if request.server_id == server_id]

    def of_model(self, model: ServedModel) -> list[OpenRequest]:
        return [request for request in self if request.model is model]
