"""The API server's end without its wires: open requests, the worker's status and epoch, and what a loss does to them.

Subclasses carry frames: they implement `_transmit`, and call `_say_hello`, `_deliver` and `_lost`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable

from flashgen_runtime.errors import FrameError, RequestError, WorkerLostError
from flashgen_runtime.messages import (
    Cancel,
    FromWorker,
    Hello,
    RepliesLost,
    Reply,
    StepOutputs,
    ToWorker,
    WorkerStatus,
    WorkRequest,
    is_final,
)
from flashgen_runtime.transport.codec import decode_from_worker, encode
from flashgen_runtime.transport.reply_queue import ReplyQueue

log = logging.getLogger(__name__)


class Connection(ABC):
    """A `WorkerConnection` (see `transport.base` for the guarantees) over frames."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._status: WorkerStatus | None = None
        self._callbacks: list[Callable[[], None]] = []

        # Requests without their final reply. Bounded by what the API server admits.
        self._open: dict[str, ReplyQueue] = {}

    @abstractmethod
    async def start(self) -> None:
        """Begins to connect, and to connect again after every loss."""

    @abstractmethod
    async def close(self) -> None:
        """Ends the connection; open requests raise `WorkerLostError`."""

    @property
    def status(self) -> WorkerStatus | None:
        return self._status

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    async def stream(self, request: WorkRequest) -> AsyncGenerator[Reply, None]:
        replies = self._send_request(request)
        try:
            while True:
                reply = await replies.get()
                yield reply
                if is_final(reply):
                    return
        finally:
            # Still open: the reader left early.
            if self._open.get(request.request_id) is replies:
                del self._open[request.request_id]
                self._say(Cancel(request_id=request.request_id))

    @abstractmethod
    def _transmit(self, frame: bytes) -> bool:
        """Hands a frame to the wire without waiting; `False` when there is none or its queue is full."""

    def _say_hello(self) -> bool:
        """Asks for the worker's status; `False` when the wire does not take the message yet."""
        return self._say(Hello())

    def _lost(self) -> None:
        """The wire is down: every open request ends with `WorkerLostError`."""
        self._set_status(None)

    def _deliver(self, frame: bytes) -> None:
        """Acts on a frame of the worker; a malformed one is logged and ignored."""
        try:
            message = decode_from_worker(frame)
        except FrameError as error:
            log.warning("frame from worker %s ignored: %s", self.address, error)
            return
        self._receive(message)

    def _receive(self, message: FromWorker) -> None:
        match message:
            case WorkerStatus():
                self._set_status(message)
            case StepOutputs():
                self._receive_outputs(message)
            case RepliesLost():
                log.warning("worker %s dropped replies: this server did not read fast enough", self.address)
                self._lost()
                self._say_hello()

    def _receive_outputs(self, outputs: StepOutputs) -> None:
        if self._status is None or outputs.epoch != self._status.epoch:
            return
        for reply in outputs.replies:
            self._receive_reply(reply)

    def _receive_reply(self, reply: Reply) -> None:
        replies = self._open.get(reply.request_id)
        if replies is None:
            # Nobody reads it: the `Cancel` is still on its way, or found the queue full.
            if not is_final(reply):
                self._say(Cancel(request_id=reply.request_id))
            return
        if is_final(reply):
            del self._open[reply.request_id]
        elif replies.is_full:
            del self._open[reply.request_id]
            self._say(Cancel(request_id=reply.request_id))
            replies.put(RequestError("the answer was not read fast enough", kind="overloaded"))
            return
        replies.put(reply)

    def _set_status(self, status: WorkerStatus | None) -> None:
        before, self._status = self._status, status
        if before is not None and (status is None or status.epoch != before.epoch):
            self._fail_open_requests()
        if status != before:
            for callback in self._callbacks:
                callback()

    def _fail_open_requests(self) -> None:
        lost, self._open = self._open, {}
        for replies in lost.values():
            replies.put(WorkerLostError(self.address))

    def _send_request(self, request: WorkRequest) -> ReplyQueue:
        if self._status is None:
            raise RequestError(f"no connection to the worker at {self.address}", kind="unavailable")
        if request.request_id in self._open:
            raise RequestError(f"request id `{request.request_id}` is in use", kind="internal")
        try:
            frame = encode(request)
        except FrameError as error:
            raise RequestError(f"the request cannot be sent: {error}", kind="invalid_request") from error
        if not self._transmit(frame):
            raise RequestError(f"the queue of the worker at {self.address} is full", kind="overloaded")
        replies = self._open[request.request_id] = ReplyQueue()
        return replies

    def _say(self, message: ToWorker) -> bool:
        return self._transmit(encode(message))
