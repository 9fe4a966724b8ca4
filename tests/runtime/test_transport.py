"""One contract for every transport: `transport.base`, over memory and over ZeroMQ."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
import zmq

from flashgen_runtime.errors import RequestError, WorkerLostError
from flashgen_runtime.messages import (
    Cancel,
    Hello,
    RequestFailure,
    StepOutputs,
    TextDelta,
    WorkerStatus,
)
from flashgen_runtime.transport import codec
from flashgen_runtime.transport.base import MAX_UNREAD_REPLIES, WorkerConnection, WorkerEndpoint
from flashgen_runtime.transport.memory import MemoryLine
from flashgen_runtime.transport.zmq import ZmqWorkerConnection, ZmqWorkerEndpoint
from tests.runtime_workers import TIMEOUT_SECONDS, generate, in_state, replies_of, status_where, text_of

READY = WorkerStatus(epoch="first", state="ready")


class Wire:
    """Makes the two ends of one address, and closes them at the end of the test."""

    def __init__(self, bind: Callable[[], WorkerEndpoint], connect: Callable[[], WorkerConnection]) -> None:
        self._bind = bind
        self._connect = connect
        self._ends = AsyncExitStack()

    async def __aenter__(self) -> "Wire":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._ends.aclose()

    def bind(self, status: WorkerStatus | None = READY) -> WorkerEndpoint:
        endpoint = self._bind()
        self._ends.push_async_callback(endpoint.close)
        if status is not None:
            endpoint.publish(status)
        return endpoint

    async def connect(self) -> WorkerConnection:
        """A started connection; not yet connected."""
        connection = self._connect()
        self._ends.push_async_callback(connection.close)
        await connection.start()
        return connection

    async def connect_to(self, endpoint: WorkerEndpoint) -> WorkerConnection:
        """A connection that has said hello and has the status."""
        connection = await self.connect()
        envelope = await endpoint.receive()
        assert isinstance(envelope.message, Hello)
        await status_where(connection, lambda status: status is not None)
        return connection


@pytest.fixture(params=["memory", "zmq"])
def wire(request: pytest.FixtureRequest) -> Wire:
    if request.param == "memory":
        line = MemoryLine()
        return Wire(line.bind, line.connect)
    return zmq_wire()


def zmq_wire() -> Wire:
    port = free_port()
    return Wire(lambda: ZmqWorkerEndpoint("127.0.0.1", port), lambda: ZmqWorkerConnection(f"127.0.0.1:{port}"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(test: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await test

    asyncio.run(limited())


def delta(request_id: str, text: str, *, is_last: bool = False) -> TextDelta:
    return TextDelta(request_id=request_id, text=text, finish_reason="stop" if is_last else None)


def step(*replies: Any, epoch: str = "first") -> StepOutputs:
    return StepOutputs(epoch=epoch, replies=list(replies))


def start_reading(connection: WorkerConnection, request_id: str) -> "asyncio.Task[list[Any]]":
    return asyncio.create_task(replies_of(connection, generate(request_id)))


def test_a_hello_is_answered_with_the_status(wire):
    """A connection learns what state the worker is in as soon as it is there."""

    async def main():
        async with wire:
            endpoint = wire.bind()

            connection = await wire.connect_to(endpoint)

            assert connection.status == READY
            assert endpoint.connected_servers == 1

    run(main())


def test_a_worker_may_come_after_its_connections(wire):
    """A connection waits for its worker, however late that is."""

    async def main():
        async with wire:
            connection = await wire.connect()
            assert connection.status is None

            receiving = asyncio.create_task(wire.bind().receive())

            await in_state(connection, "ready")
            await receiving

    run(main())


def test_a_published_status_reaches_every_connection(wire):
    """A change of the worker's state is known to each connection, which calls back."""

    async def main():
        async with wire:
            endpoint = wire.bind(WorkerStatus(epoch="first", state="loading"))
            connections = [await wire.connect_to(endpoint) for _ in range(2)]
            changes = []
            connections[0].on_change(lambda: changes.append(connections[0].status))

            endpoint.publish(READY)

            for connection in connections:
                await in_state(connection, "ready")
            assert changes == [READY]

    run(main())


def test_replies_come_in_order_and_end_with_the_final_one(wire):
    """A request's replies are read in the order in which they were sent."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            reading = start_reading(connection, "r")
            server_id, request = await endpoint.receive()

            assert endpoint.send(server_id, step(delta("r", "a")))
            assert endpoint.send(server_id, step(delta("r", "b"), delta("other", "?")))
            assert endpoint.send(server_id, step(delta("r", "c", is_last=True)))

            assert request == generate("r")
            assert text_of(await reading) == "abc"

    run(main())


def test_messages_of_one_server_arrive_in_order(wire):
    """The worker reads requests in the order in which one server sent them."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            reading = [start_reading(connection, str(number)) for number in range(20)]

            received = [(await endpoint.receive()).message.request_id for _ in reading]

            assert received == [str(number) for number in range(20)]
            await connection.close()
            await asyncio.wait(reading)
            assert all(isinstance(task.exception(), WorkerLostError) for task in reading)

    run(main())


def test_a_step_serves_several_requests(wire):
    """One message carries the replies of all requests of a server; each reader gets its own."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            reading = [start_reading(connection, request_id) for request_id in "ab"]
            server_id, _ = await endpoint.receive()
            await endpoint.receive()

            endpoint.send(server_id, step(delta("a", "1", is_last=True), delta("b", "2", is_last=True)))

            assert [text_of(replies) for replies in await asyncio.gather(*reading)] == ["1", "2"]

    run(main())


def test_a_failure_ends_its_request(wire):
    """A `RequestFailure` is the last reply."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            reading = start_reading(connection, "r")
            server_id, _ = await endpoint.receive()
            failure = RequestFailure(request_id="r", kind="unknown_model", message="no")

            endpoint.send(server_id, step(failure))

            assert await reading == [failure]

    run(main())


def test_leaving_a_stream_early_sends_cancel(wire):
    """A reader that closes its stream makes the worker stop."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            async with aclosing(connection.stream(generate("r"))) as stream:
                first = asyncio.ensure_future(anext(stream))
                server_id, _ = await endpoint.receive()
                endpoint.send(server_id, step(delta("r", "a")))
                await first

            _, message = await endpoint.receive()

            assert message == Cancel(request_id="r")

    run(main())


def test_a_reply_that_nobody_reads_is_answered_with_cancel(wire):
    """A `Cancel` that found the queue full is sent again when the worker goes on."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect()
            server_id, _ = await endpoint.receive()
            await in_state(connection, "ready")

            endpoint.send(server_id, step(delta("forgotten", "a")))

            assert (await endpoint.receive()).message == Cancel(request_id="forgotten")

    run(main())


def test_a_request_without_a_worker_is_refused(wire):
    """Without a connection a request fails at once; it does not wait for one."""

    async def main():
        async with wire:
            connection = await wire.connect()

            with pytest.raises(RequestError, match="no connection") as caught:
                await replies_of(connection, generate("r"))

            assert caught.value.kind == "unavailable"

    run(main())


def test_a_request_id_is_used_once_at_a_time(wire):
    """Two open requests with one id would read each other's replies."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            reading = start_reading(connection, "r")
            server_id, _ = await endpoint.receive()

            with pytest.raises(RequestError, match="in use"):
                await replies_of(connection, generate("r"))

            endpoint.send(server_id, step(delta("r", "a", is_last=True)))
            assert text_of(await reading) == "a"

    run(main())


def test_open_requests_fail_when_the_worker_ends(wire):
    """The end of the worker is the end of its requests, after the replies that came before it."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            stream = connection.stream(generate("r"))
            first = asyncio.ensure_future(anext(stream))
            server_id, _ = await endpoint.receive()
            endpoint.send(server_id, step(delta("r", "a")))

            await endpoint.close()

            assert (await first).text == "a"
            with pytest.raises(WorkerLostError):
                await anext(stream)
            assert connection.status is None

    run(main())


def test_a_connection_comes_back_to_a_new_worker(wire):
    """After a restart the connection has the new worker's status and serves again."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            await endpoint.close()
            await in_state(connection, None)

            endpoint = wire.bind(WorkerStatus(epoch="second", state="ready"))
            server_id, _ = await endpoint.receive()
            await in_state(connection, "ready")
            reading = start_reading(connection, "r")
            await endpoint.receive()
            endpoint.send(server_id, step(delta("r", "a", is_last=True), epoch="second"))

            assert text_of(await reading) == "a"

    run(main())


def test_messages_of_another_epoch_are_discarded(wire):
    """What an earlier life of the worker said reaches no request of this one."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            reading = start_reading(connection, "r")
            server_id, _ = await endpoint.receive()

            endpoint.send(server_id, step(delta("r", "old", is_last=True), epoch="zeroth"))
            endpoint.send(server_id, step(delta("r", "new", is_last=True)))

            assert text_of(await reading) == "new"

    run(main())


def test_a_status_of_another_epoch_fails_open_requests(wire):
    """A worker that started again does not know the requests of its former life."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            reading = start_reading(connection, "r")
            await endpoint.receive()

            endpoint.publish(WorkerStatus(epoch="second", state="loading"))

            with pytest.raises(WorkerLostError):
                await reading

    run(main())


def test_the_worker_notices_that_a_server_left(wire):
    """A closed connection is noticed without a send; later sends to it say so."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            lost: asyncio.Queue[bytes] = asyncio.Queue()
            endpoint.on_server_lost(lost.put_nowait)
            connection = await wire.connect()
            server_id, _ = await endpoint.receive()
            await in_state(connection, "ready")

            await connection.close()

            assert await lost.get() == server_id
            assert endpoint.connected_servers == 0
            assert not endpoint.send(server_id, step(delta("r", "a")))

    run(main())


def test_a_reader_that_is_stuck_fails_its_request_only(wire):
    """A request holds so many unread replies, then it ends with an error and is cancelled; others go on."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            stuck = connection.stream(generate("stuck"))
            first = asyncio.ensure_future(anext(stuck))
            server_id, _ = await endpoint.receive()
            endpoint.send(server_id, step(delta("stuck", "0")))
            await first

            endpoint.send(server_id, step(*(delta("stuck", "x") for _ in range(MAX_UNREAD_REPLIES + 1))))

            assert (await endpoint.receive()).message == Cancel(request_id="stuck")
            with pytest.raises(RequestError, match="not read fast enough") as caught:
                [reply async for reply in stuck]
            assert caught.value.kind == "overloaded"
            assert connection.status == READY

    run(main())


def test_a_full_queue_refuses_requests(wire):
    """A worker that takes no messages fills its queue; then requests are refused at once, and nothing waits."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            reading = []

            while not reading or not reading[-1].done():
                request = generate(str(len(reading)), prompt="x" * 30_000)
                reading.append(asyncio.create_task(replies_of(connection, request)))
                await asyncio.sleep(0)

            error = reading.pop().exception()
            assert isinstance(error, RequestError)
            assert error.kind == "overloaded"
            await connection.close()
            await asyncio.wait(reading)
            assert all(isinstance(task.exception(), WorkerLostError) for task in reading)

    run(main())


def test_a_request_too_large_for_a_frame_is_refused(wire, monkeypatch):
    """The caller is told; the connection and other requests are fine."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            monkeypatch.setattr(codec, "MAX_FRAME_BYTES", 1000)

            with pytest.raises(RequestError, match="larger than the limit") as caught:
                await replies_of(connection, generate("r", prompt="x" * 1001))

            assert caught.value.kind == "invalid_request"
            assert connection.status == READY

    run(main())


def test_a_step_too_large_for_a_frame_is_sent_reply_by_reply(wire, monkeypatch):
    """Only a reply that is too large by itself fails."""

    async def main():
        async with wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            reading = [start_reading(connection, request_id) for request_id in ("small", "large")]
            server_id, _ = await endpoint.receive()
            await endpoint.receive()
            monkeypatch.setattr(codec, "MAX_FRAME_BYTES", 1000)

            outputs = step(delta("small", "x" * 600, is_last=True), delta("large", "x" * 1001, is_last=True))
            assert endpoint.send(server_id, outputs)

            small, large = await asyncio.gather(*reading)
            assert text_of(small) == "x" * 600
            assert [reply.kind for reply in large] == ["internal"]

    run(main())


def test_an_address_has_one_worker(wire):
    """A second worker at the same address is an `OSError`, at once."""

    async def main():
        async with wire:
            wire.bind()

            with pytest.raises(OSError, match="in use"):
                wire.bind()

    run(main())


def test_a_server_that_does_not_read_loses_its_requests():
    """When a server's queue is full, the worker does not wait: the server's requests end with an error, not early."""

    async def main():
        async with zmq_wire() as wire:
            endpoint = wire.bind()
            connection = await wire.connect()
            server_id, _ = await endpoint.receive()
            await in_state(connection, "ready")
            reading = start_reading(connection, "r")
            await endpoint.receive()

            # Without a pause the event loop, which both ends share, has no time to read.
            while endpoint.send(server_id, step(delta("other", "x" * 30_000, is_last=True))):
                pass
            server_is_back = asyncio.create_task(endpoint.receive())

            with pytest.raises(WorkerLostError):
                await reading
            assert isinstance((await server_is_back).message, Hello)
            await in_state(connection, "ready")

    run(main())


def test_what_was_queued_for_one_worker_reaches_no_other():
    """Requests that a lost worker never took have failed; the next worker hears nothing of them."""

    async def main():
        async with zmq_wire() as wire:
            endpoint = wire.bind()
            connection = await wire.connect_to(endpoint)
            reading = []
            while not reading or not reading[-1].done():
                request = generate(str(len(reading)), prompt="x" * 30_000)
                reading.append(asyncio.create_task(replies_of(connection, request)))
                await asyncio.sleep(0)
            await endpoint.close()
            await in_state(connection, None)
            await asyncio.wait(reading)

            endpoint = wire.bind(WorkerStatus(epoch="second", state="ready"))
            hello = await endpoint.receive()
            await in_state(connection, "ready")
            new = start_reading(connection, "new")
            request = await endpoint.receive()

            assert isinstance(hello.message, Hello)
            assert request.message.request_id == "new"
            new.cancel()
            await asyncio.wait([new])

    run(main())


def test_malformed_frames_are_ignored():
    """Rubbish from the network, or a stranger's valid message without hello, leaves the worker as it was."""

    async def main():
        async with zmq_wire() as wire:
            endpoint = wire.bind()
            with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
                stranger.connect(f"tcp://127.0.0.1:{endpoint.port}")
                for parts in ([b""], [b"\xff" * 50], [b"", b"", b""], [codec.encode(generate("no hello"))]):
                    stranger.send_multipart(parts)
                stranger.send(codec.encode(Hello()))

                envelope = await endpoint.receive()

                assert envelope.message == Hello()
                stranger.close(0)
            assert (await wire.connect_to(endpoint)).status == READY

    run(main())


def test_another_protocol_is_refused():
    """An API server of another protocol version is told so, and its messages are not taken."""

    async def main():
        async with zmq_wire() as wire:
            endpoint = wire.bind()
            receiving = asyncio.create_task(endpoint.receive())
            with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
                stranger.connect(f"tcp://127.0.0.1:{endpoint.port}")
                stranger.send(codec.encode(Hello(protocol_version=99)))

                answer = await asyncio.to_thread(stranger.recv)

                status = codec.decode_from_worker(answer)
                assert status.state == "failed"
                assert "99" in status.detail
                stranger.close(0)
            assert endpoint.connected_servers == 0
            receiving.cancel()

    run(main())
