"""Both ends in one process and event loop, with the guarantees and the frames of the real transport: for tests."""

import asyncio
from typing import NamedTuple

from flashgen_runtime.transport.base import Envelope
from flashgen_runtime.transport.connection import Connection
from flashgen_runtime.transport.endpoint import Endpoint, Sent

# Messages that a worker has not taken yet; as many as ZeroMQ keeps by default.
MAX_UNREAD_MESSAGES = 1000


class MemoryLine:
    """An address within this process: one endpoint at a time listens there, any number of connections lead there."""

    def __init__(self, address: str = "memory") -> None:
        self.address = address
        self._endpoint: MemoryEndpoint | None = None
        self._connections: list[MemoryConnection] = []

    def bind(self) -> "MemoryEndpoint":
        """A worker's end; connections that wait for one are connected. Raises `OSError` while another listens."""
        if self._endpoint is not None:
            raise OSError(f"address in use: {self.address}")
        self._endpoint = MemoryEndpoint(self)
        for connection in self._connections:
            connection.join(self._endpoint)
        return self._endpoint

    def connect(self) -> "MemoryConnection":
        """An API server's end, to be started."""
        return MemoryConnection(self)

    def _add(self, connection: "MemoryConnection") -> None:
        self._connections.append(connection)
        if self._endpoint is not None:
            connection.join(self._endpoint)

    def _remove(self, connection: "MemoryConnection") -> None:
        if connection in self._connections:
            self._connections.remove(connection)

    def _unbind(self) -> None:
        self._endpoint = None
        for connection in self._connections:
            connection.part()


class MemoryEndpoint(Endpoint):
    """The worker's end of a `MemoryLine`."""

    def __init__(self, line: MemoryLine) -> None:
        super().__init__()
        self._line = line
        self._inbox: asyncio.Queue[_Frame] = asyncio.Queue(MAX_UNREAD_MESSAGES)
        self._peers: dict[bytes, MemoryConnection] = {}
        self._next_id = 0
        self._is_closed = False

    async def receive(self) -> Envelope:
        while True:
            sender, frame = await self._inbox.get()
            if sender not in self._peers:
                continue
            envelope = self._open_frame(sender, frame)
            if envelope is not None:
                return envelope

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._servers.clear()
            self._peers.clear()
            self._line._unbind()

    def attach(self, connection: "MemoryConnection") -> bytes:
        """Takes a connection in; returns the id under which it is known."""
        self._next_id += 1
        server_id = self._next_id.to_bytes(4, "big")
        self._peers[server_id] = connection
        return server_id

    def detach(self, server_id: bytes) -> None:
        """Forgets a connection that ended."""
        if self._peers.pop(server_id, None) is not None:
            self._lose_server(server_id)

    def accept(self, server_id: bytes, frame: bytes) -> bool:
        """Takes a frame of a connection; `False` when the inbox is full."""
        if self._inbox.full():
            return False
        self._inbox.put_nowait(_Frame(server_id, frame))
        return True

    def _transmit(self, server_id: bytes, frame: bytes) -> Sent:
        peer = self._peers.get(server_id)
        if peer is None:
            return Sent.SERVER_GONE
        peer.take(frame)
        return Sent.YES


class MemoryConnection(Connection):
    """An API server's end of a `MemoryLine`."""

    def __init__(self, line: MemoryLine) -> None:
        super().__init__(line.address)
        self._line = line
        self._endpoint: MemoryEndpoint | None = None
        self._id = b""

    async def start(self) -> None:
        self._line._add(self)

    async def close(self) -> None:
        self._line._remove(self)
        if self._endpoint is not None:
            self._endpoint.detach(self._id)
        self.part()

    def join(self, endpoint: MemoryEndpoint) -> None:
        """Connects to an endpoint."""
        self._endpoint = endpoint
        self._id = endpoint.attach(self)
        self._say_hello()

    def part(self) -> None:
        """Notices that the endpoint is gone."""
        self._endpoint = None
        self._lost()

    def take(self, frame: bytes) -> None:
        """Takes a frame of the endpoint."""
        self._deliver(frame)

    def _transmit(self, frame: bytes) -> bool:
        return self._endpoint is not None and self._endpoint.accept(self._id, frame)


class _Frame(NamedTuple):
    """Bytes on their way to the worker."""

    sender: bytes
    content: bytes
