"""An API server's end of the ZeroMQ transport: one DEALER that connects to one worker, and again after every loss."""

import asyncio

import zmq

from flashgen_runtime.transport.connection import Connection
from flashgen_runtime.transport.zmq.socket import MAX_MESSAGES_PER_TURN, LoopSocket, Monitor, SendResult, open_socket

RECONNECT_INTERVAL_MS = 100
MAX_RECONNECT_INTERVAL_MS = 1000
CONNECT_TIMEOUT_MS = 3000

# When the queue is full of messages from before the connection.
HELLO_INTERVAL_SECONDS = 0.05

_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class ZmqWorkerConnection(Connection):
    """A `WorkerConnection` to `address`, which is "host:port", or "[host]:port" for an IPv6 address.

    NOTE: `ZMQ_IMMEDIATE` is not set. It would keep messages out of a queue without connection, but here none is sent
    without a status; and with it a lost connection takes along what the worker sent last. What was queued when a
    connection was lost goes to the next one ahead of the hello, where a worker ignores it.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._socket: LoopSocket | None = None
        self._monitor: Monitor | None = None
        self._hello_timer: asyncio.TimerHandle | None = None
        self._is_up = False

    async def start(self) -> None:
        socket = open_socket(zmq.Context.instance(), zmq.DEALER, host=self.address.rpartition(":")[0])
        socket.set(zmq.RECONNECT_IVL, RECONNECT_INTERVAL_MS)
        socket.set(zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_INTERVAL_MS)
        socket.set(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        self._monitor = Monitor(socket, _EVENTS, self._on_event)
        self._socket = LoopSocket(socket, self._read)
        socket.connect(f"tcp://{self.address}")

    async def close(self) -> None:
        self._stop_greeting()
        if self._socket is not None and self._monitor is not None:
            self._monitor.close()
            self._socket.close(linger_ms=0)
        self._socket = None
        self._lost()

    def _transmit(self, frame: bytes) -> bool:
        return self._socket is not None and self._socket.send_now(frame) is SendResult.SENT

    def _read(self) -> None:
        for _ in range(MAX_MESSAGES_PER_TURN):
            if not self._read_one():
                return
        if self._socket is not None:
            self._socket.look_again()

    def _read_one(self) -> bool:
        """Acts on one message; `False` when none waits."""
        parts = self._socket.receive_now() if self._socket is not None else None
        if parts is None:
            return False
        if self._is_up:
            self._deliver(b"".join(parts))
        return True

    def _on_event(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._is_up = True
            self._say_hello()
        elif event == zmq.EVENT_DISCONNECTED:
            self._stop_greeting()
            # What arrived before the end still counts.
            while self._read_one():
                pass
            self._is_up = False
            self._lost()

    def _say_hello(self) -> bool:
        """Says hello as soon as the queue has room."""
        self._stop_greeting()
        is_said = super()._say_hello()
        if not is_said:
            self._hello_timer = asyncio.get_running_loop().call_later(HELLO_INTERVAL_SECONDS, self._say_hello)
        return is_said

    def _stop_greeting(self) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None
