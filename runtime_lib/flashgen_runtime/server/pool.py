"""The workers of one server as the API side sees them. Which ones there are is left to `discovery`, or to a test."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flashgen_runtime.messages import WorkerStatus
from flashgen_runtime.transport.base import WorkerConnection


class Member:
    """One worker of a pool: the line to it, and what is open on that line."""

    def __init__(self, connection: WorkerConnection) -> None:
        self.connection = connection
        self.open_requests = 0

        # Why the worker failed; kept when it exits, until a worker at this address says something else.
        self.failure: str | None = None
        connection.on_change(self._remember_failure)

    @property
    def status(self) -> WorkerStatus | None:
        return self.connection.status

    @property
    def is_ready(self) -> bool:
        status = self.connection.status
        return status is not None and status.state == "ready"

    @contextmanager
    def one_more_request(self) -> Iterator[None]:
        """Counts a request for as long as it is open."""
        self.open_requests += 1
        try:
            yield
        finally:
            self.open_requests -= 1

    def _remember_failure(self) -> None:
        status = self.connection.status
        if status is not None:
            self.failure = status.detail if status.state == "failed" else None


class WorkerPool:
    """The workers of one server; a fixed set here, and a base for sets that change or start their own workers."""

    def __init__(self, connections: Iterable[WorkerConnection] = ()) -> None:
        self.members = [Member(connection) for connection in connections]

    async def start(self) -> None:
        """Begins to connect; does not wait until somebody answers."""
        for member in self.members:
            await member.connection.start()

    async def close(self) -> None:
        """Ends all connections; what is still open on them raises `WorkerLostError`."""
        for member in self.members:
            await member.connection.close()
