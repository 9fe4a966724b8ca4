"""A ZeroMQ socket on an asyncio event loop, without a future per message.

A socket's file descriptor says only that *something* happened, and says it once: the next call on the socket, a send
too, may take the signal away while messages are still waiting. So after every call that may have done so, waiting
messages are looked for again.

`zmq.asyncio` does the same with a future for each message and a turn of the event loop for each future, which takes
twice the time where many requests are open (`docs/experiments.md` has the numbers).
"""

import asyncio
from collections.abc import Callable
from enum import Enum

import zmq
from zmq.utils.monitor import parse_monitor_message

from flashgen_runtime.transport.codec import MAX_FRAME_BYTES

# Frames in each direction and per peer, beside what TCP buffers; a frame is one engine step or one request.
HIGH_WATER_MARK = 1000

# A vanished host is noticed after this time; long enough for a process that the operating system starves.
HEARTBEAT_INTERVAL_MS = 1000
HEARTBEAT_TIMEOUT_MS = 3000

# Messages taken before other callbacks of the event loop have their turn.
MAX_MESSAGES_PER_TURN = 128


class SendResult(Enum):
    """What became of a message."""

    SENT = "sent"
    QUEUE_FULL = "queue full"
    UNREACHABLE = "unreachable"


class LoopSocket:
    """Reads and writes a ZeroMQ socket on the event loop that runs when it is made.

    Args:
        on_readable: called when messages may be waiting. It takes them with `receive_now` until that gives `None`, or
            calls `look_again` before it stops earlier: otherwise it may not be called again.
    """

    def __init__(self, socket: zmq.Socket[bytes], on_readable: Callable[[], None]) -> None:
        self._socket = socket
        self._on_readable = on_readable
        self._event_loop = asyncio.get_running_loop()
        self._descriptor = int(socket.get(zmq.FD))
        self._looks_again = False
        self._is_closed = False
        self._event_loop.add_reader(self._descriptor, self._take_signal)
        self.look_again()

    def receive_now(self) -> list[bytes] | None:
        """The next message's parts, or `None` when no message waits."""
        if self._is_closed:
            return None
        try:
            return self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def send_now(self, *parts: bytes) -> SendResult:
        """Queues a message, without waiting."""
        if self._is_closed:
            return SendResult.UNREACHABLE
        result = self._try_send(parts)
        # Looking at the events also does the socket's outstanding work: a peer may have come, or made room.
        events = int(self._socket.get(zmq.EVENTS))
        if result is not SendResult.SENT and events & zmq.POLLOUT:
            result = self._try_send(parts)
            events = int(self._socket.get(zmq.EVENTS))
        if events & zmq.POLLIN:
            self.look_again()
        return result

    def look_again(self) -> None:
        """Calls `on_readable` in the event loop's next turn."""
        if not self._looks_again:
            self._looks_again = True
            self._event_loop.call_soon(self._look)

    def close(self, *, linger_ms: int) -> None:
        """Closes the socket; what is queued is delivered in the background for at most `linger_ms`."""
        if not self._is_closed:
            self._is_closed = True
            self._event_loop.remove_reader(self._descriptor)
            self._socket.close(linger_ms)

    def _take_signal(self) -> None:
        # Looking at the events takes the signal away; left alone, it would wake the event loop again and again.
        if int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._on_readable()

    def _look(self) -> None:
        self._looks_again = False
        if not self._is_closed:
            self._on_readable()

    def _try_send(self, parts: tuple[bytes, ...]) -> SendResult:
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return SendResult.QUEUE_FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return SendResult.UNREACHABLE
        return SendResult.SENT


class Monitor:
    """Calls back with every event of a socket that is among `events`."""

    def __init__(self, socket: zmq.Socket[bytes], events: int, on_event: Callable[[int], None]) -> None:
        self._watched = socket
        self._on_event = on_event
        self._socket = LoopSocket(socket.get_monitor_socket(events), self._read)

    def close(self) -> None:
        """Stops watching; before the watched socket is closed."""
        if not self._watched.closed:
            # First: ZeroMQ's thread would wait for ever to send an event to a socket that is closed.
            self._watched.disable_monitor()
            self._socket.close(linger_ms=0)

    def _read(self) -> None:
        while (parts := self._socket.receive_now()) is not None:
            self._on_event(parse_monitor_message(parts)["event"])


def open_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int, *, host: str) -> zmq.Socket[bytes]:
    """A socket with the limits and heartbeats of both ends; `host` is what it will bind or connect to."""
    socket = context.socket(kind)
    # Only for a literal address: with the option set a name would resolve to IPv6 alone.
    socket.set(zmq.IPV6, int(":" in host))
    socket.set(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.set(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_INTERVAL_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.set(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    return socket
