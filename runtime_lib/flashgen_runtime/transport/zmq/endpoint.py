"""A worker's end of the ZeroMQ transport: one ROUTER to which every API server connects."""

import asyncio

import zmq

from flashgen_runtime.transport.base import Envelope
from flashgen_runtime.transport.endpoint import Endpoint, Sent
from flashgen_runtime.transport.zmq.socket import MAX_MESSAGES_PER_TURN, LoopSocket, Monitor, SendResult, open_socket

LINGER_MS = 1000

# How soon a server that fell behind is told so, once its queue has room.
TELL_INTERVAL_SECONDS = 0.05

# A connection's end is known a moment before the socket forgets the peer, so peers are looked for more than once.
PROBE_AFTER_SECONDS = (0.0, 0.02, 0.1, 0.5)

_RESULTS = {
    SendResult.SENT: Sent.YES,
    SendResult.QUEUE_FULL: Sent.QUEUE_FULL,
    SendResult.UNREACHABLE: Sent.SERVER_GONE,
}


class ZmqWorkerEndpoint(Endpoint):
    """A `WorkerEndpoint` on a TCP port; `port` 0 takes a free one.

    Raises:
        OSError: the address is in use or not of this machine.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = open_socket(self._context, zmq.ROUTER, host=host)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        try:
            socket.bind(f"tcp://{_bracketed(host)}:{port or '*'}")
        except zmq.ZMQError as error:
            self._context.destroy(0)
            raise OSError(error.errno, f"{zmq.strerror(error.errno or 0)}: {host}:{port}") from error
        self.port = int(socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._is_readable = asyncio.Event()
        self._num_taken = 0
        self._tell_timer: asyncio.TimerHandle | None = None
        self._probes: list[asyncio.TimerHandle] = []
        self._monitor = Monitor(socket, zmq.EVENT_DISCONNECTED, self._on_event)
        self._socket = LoopSocket(socket, self._is_readable.set)

    async def receive(self) -> Envelope:
        while True:
            await self._give_others_a_turn()
            parts = self._socket.receive_now()
            if parts is None:
                self._is_readable.clear()
                await self._is_readable.wait()
                continue
            server_id, *content = parts
            envelope = self._open_frame(server_id, b"".join(content))
            if envelope is not None:
                return envelope

    async def close(self) -> None:
        if self._tell_timer is not None:
            self._tell_timer.cancel()
        self._stop_probing()
        self._monitor.close()
        self._socket.close(linger_ms=LINGER_MS)
        # Waits until the queues are empty or `LINGER_MS` have passed; then the port is free.
        await asyncio.get_running_loop().run_in_executor(None, self._context.term)

    def _transmit(self, server_id: bytes, frame: bytes) -> Sent:
        sent = _RESULTS[self._socket.send_now(server_id, frame)]
        if sent is Sent.QUEUE_FULL and self._tell_timer is None:
            self._tell_later()
        return sent

    async def _give_others_a_turn(self) -> None:
        """A flood of messages is taken without waiting; other tasks must not starve meanwhile."""
        self._num_taken += 1
        if self._num_taken % MAX_MESSAGES_PER_TURN == 0:
            await asyncio.sleep(0)

    def _tell_later(self) -> None:
        self._tell_timer = asyncio.get_running_loop().call_later(TELL_INTERVAL_SECONDS, self._tell)

    def _tell(self) -> None:
        self._tell_timer = None
        if not self._tell_those_behind() and self._tell_timer is None:
            self._tell_later()

    def _on_event(self, event: int) -> None:
        if event == zmq.EVENT_DISCONNECTED:
            self._stop_probing()
            loop = asyncio.get_running_loop()
            self._probes = [loop.call_later(seconds, self._probe) for seconds in PROBE_AFTER_SECONDS]

    def _stop_probing(self) -> None:
        for probe in self._probes:
            probe.cancel()

    def _probe(self) -> None:
        """Finds out which servers are gone: the status, sent once more, does not reach them."""
        if self._status is not None:
            self.publish(self._status)


def _bracketed(host: str) -> str:
    """The host as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host
