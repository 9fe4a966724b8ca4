"""The transport's two ends as interfaces, with what each guarantees.

A worker binds one `WorkerEndpoint`; an API server holds one `WorkerConnection` per worker address. `zmq` joins them
across processes and hosts, `memory` within one process, for tests.
"""

from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple, Protocol

from flashgen_runtime.messages import Reply, StepOutputs, ToWorker, WorkerStatus, WorkRequest

# Replies that one request may hold unread before its reader counts as stuck and the request is failed.
MAX_UNREAD_REPLIES = 4096


class Envelope(NamedTuple):
    """A message and the API server that sent it."""

    server_id: bytes
    message: ToWorker


class WorkerEndpoint(Protocol):
    """The worker's end. All methods are called on one event loop."""

    async def receive(self) -> Envelope:
        """The next message of any API server, in the order in which each server sent its own."""

    def send(self, server_id: bytes, outputs: StepOutputs) -> bool:
        """Hands one step's replies to one server, without ever waiting.

        Returns `False` when the server is gone or its queue is full: nothing further reaches its open requests, and
        the caller aborts them. The server sees the gap as a lost connection, never as a shorter answer.
        """

    def publish(self, status: WorkerStatus) -> None:
        """Tells every connected server, and each that connects later, what the worker's state is."""

    def on_server_lost(self, callback: Callable[[bytes], None]) -> None:
        """Calls back with the id of a server whose connection ended: nothing reaches its open requests any more."""

    @property
    def connected_servers(self) -> int:
        """Servers that have said hello and are still there."""

    async def close(self) -> None:
        """Delivers what was sent, for at most a second, and frees the address."""


class WorkerConnection(Protocol):
    """An API server's end: the line to one worker. All methods are called on one event loop."""

    address: str

    @property
    def status(self) -> WorkerStatus | None:
        """The worker's last word about itself; `None` while there is no connection."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls back after every change of `status`."""

    def stream(self, request: WorkRequest) -> AsyncGenerator[Reply, None]:
        """Sends a request and yields its replies in order, ending after the final one.

        Raises `RequestError` (kind "unavailable") before the first reply when there is no connection or its queue is
        full, and `WorkerLostError` within a second when the worker ends or restarts. Closing the iterator early sends
        `Cancel`.
        """

    async def start(self) -> None:
        """Begins to connect, and to connect again after every loss."""

    async def close(self) -> None:
        """Ends the connection; open requests raise `WorkerLostError`."""
