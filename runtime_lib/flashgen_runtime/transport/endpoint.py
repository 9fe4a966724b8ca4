"""The worker's end without its wires: who is connected, the published status, and what a full queue does.

Subclasses carry frames: they implement `_transmit`, and call `_open_frame` and `_lose_server`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum

from flashgen_runtime.errors import FrameError
from flashgen_runtime.messages import (
    PROTOCOL_VERSION,
    FromWorker,
    Hello,
    RepliesLost,
    Reply,
    RequestFailure,
    StepOutputs,
    WorkerStatus,
)
from flashgen_runtime.transport.base import Envelope
from flashgen_runtime.transport.codec import decode_to_worker, encode

log = logging.getLogger(__name__)


class Sent(Enum):
    """What became of a frame."""

    YES = "yes"
    QUEUE_FULL = "queue full"
    SERVER_GONE = "server gone"


class Endpoint(ABC):
    """A `WorkerEndpoint` (see `transport.base` for the guarantees) over frames."""

    def __init__(self) -> None:
        self._status: WorkerStatus | None = None
        self._callbacks: list[Callable[[bytes], None]] = []

        # Said hello, and every reply to it was sent.
        self._servers: set[bytes] = set()

        # Missed a reply: they have to learn that, then say hello again.
        self._behind: set[bytes] = set()

    @abstractmethod
    async def receive(self) -> Envelope:
        """The next message of any API server, in the order in which each server sent its own."""

    @abstractmethod
    async def close(self) -> None:
        """Delivers what was sent, for at most a second, and frees the address."""

    @property
    def connected_servers(self) -> int:
        return len(self._servers)

    def on_server_lost(self, callback: Callable[[bytes], None]) -> None:
        self._callbacks.append(callback)

    def publish(self, status: WorkerStatus) -> None:
        self._status = status
        for server_id in tuple(self._servers):
            self._say(server_id, status)

    def send(self, server_id: bytes, outputs: StepOutputs) -> bool:
        if server_id not in self._servers:
            return False
        try:
            return self._push(server_id, encode(outputs))
        except FrameError:
            return self._send_one_by_one(server_id, outputs)

    @abstractmethod
    def _transmit(self, server_id: bytes, frame: bytes) -> Sent:
        """Hands a frame to a server's queue without waiting."""

    def _open_frame(self, server_id: bytes, frame: bytes) -> Envelope | None:
        """What a frame means to the worker; `None` when that is nothing. Answers a hello."""
        try:
            message = decode_to_worker(frame)
        except FrameError as error:
            log.warning("frame from API server %s ignored: %s", server_id.hex(), error)
            return None
        if isinstance(message, Hello):
            return Envelope(server_id, message) if self._greet(server_id, message) else None
        if server_id not in self._servers:
            # It will learn that it missed a reply, and fails this request itself; or it is no API server.
            log.debug("message from API server %s ignored: no hello yet", server_id.hex())
            return None
        return Envelope(server_id, message)

    def _greet(self, server_id: bytes, hello: Hello) -> bool:
        if hello.protocol_version != PROTOCOL_VERSION:
            self._refuse(server_id, hello.protocol_version)
            return False
        self._behind.discard(server_id)
        self._servers.add(server_id)
        if self._status is not None:
            self._say(server_id, self._status)
        return True

    def _refuse(self, server_id: bytes, protocol_version: int) -> None:
        detail = f"the worker speaks protocol {PROTOCOL_VERSION}, the API server {protocol_version}"
        log.error("API server %s refused: %s", server_id.hex(), detail)
        epoch = self._status.epoch if self._status is not None else ""
        self._transmit(server_id, encode(WorkerStatus(epoch=epoch, state="failed", detail=detail)))

    def _send_one_by_one(self, server_id: bytes, outputs: StepOutputs) -> bool:
        """A step that is too large for one frame; a reply that is too large by itself becomes a failure."""
        for reply in outputs.replies:
            try:
                frame = encode(_alone(outputs, reply))
            except FrameError as error:
                failure = RequestFailure(request_id=reply.request_id, kind="internal", message=str(error))
                frame = encode(_alone(outputs, failure))
            if not self._push(server_id, frame):
                return False
        return True

    def _say(self, server_id: bytes, message: FromWorker) -> None:
        self._push(server_id, encode(message))

    def _push(self, server_id: bytes, frame: bytes) -> bool:
        sent = self._transmit(server_id, frame)
        if sent is Sent.QUEUE_FULL:
            log.warning("API server %s does not read its replies: its requests are aborted", server_id.hex())
            self._behind.add(server_id)
        if sent is not Sent.YES:
            self._lose_server(server_id)
        return sent is Sent.YES

    def _tell_those_behind(self) -> bool:
        """Tells servers that missed a reply so; `True` when all know. To be called again until then."""
        for server_id in tuple(self._behind):
            if self._transmit(server_id, encode(RepliesLost())) is not Sent.QUEUE_FULL:
                self._behind.discard(server_id)
        return not self._behind

    def _lose_server(self, server_id: bytes) -> None:
        if server_id not in self._servers:
            return
        self._servers.discard(server_id)
        for callback in self._callbacks:
            callback(server_id)


def _alone(outputs: StepOutputs, reply: Reply) -> StepOutputs:
    return StepOutputs(epoch=outputs.epoch, replies=[reply])
