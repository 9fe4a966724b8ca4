"""Workers as processes of their own over ZeroMQ: what happens when they are killed, told to end, or cannot start."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import zmq

from flashgen_runtime.errors import WorkerLostError
from flashgen_runtime.transport.zmq import ZmqWorkerConnection
from tests.runtime_workers import generate, in_state, replies_of, service_yaml, text_of

# Starting an interpreter takes long when other tests have the machine.
START_SECONDS = 60.0

# Enough for a minute of steps.
MANY_TOKENS = 4000

# Processes whose models do what the fakes of `testing.worker` do not.
SPECIAL_WORKER = """\
import threading
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.messages import ModelStatus
from flashgen_runtime.models.text_generation import TextGenerationModel
from flashgen_runtime.testing import CharacterTokenizer, FakeEngine, FakeLibrary
from flashgen_runtime.worker import main

def load(config):
    {load}

main.LISTENER_SECONDS = {listener_seconds}
main.run_worker_with("fake", lambda server, settings: FakeLibrary(server, load=load))
"""
TRUNCATED = "raise WeightsError('model.safetensors', 'is truncated')"
ENDLESS = "threading.Event().wait()"
CRASHING = """engine = FakeEngine(fail_after=3)
    return TextGenerationModel(ModelStatus(id="fake"), engine=engine, tokenizer=CharacterTokenizer())"""


class WorkerProcess:
    """A worker's process, its ports and its environment."""

    def __init__(self, folder: Path) -> None:
        self.config_path = folder / "service.yaml"
        self.config_path.write_text(service_yaml())
        self.rpc_port, self.operations_port = free_ports(2)
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.rpc_port}"

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Starts a worker of fakes, or what `arguments` say."""
        own = {
            "FLASHGEN_CONFIG": str(self.config_path),
            "FLASHGEN_BIND_HOST": "127.0.0.1",
            "FLASHGEN_RPC_PORT": str(self.rpc_port),
            "FLASHGEN_WORKER_OPERATIONS_PORT": str(self.operations_port),
        }
        arguments = arguments or ("-m", "flashgen_runtime.testing.worker", "--server", "fake", "--delay", "0.01")
        self.process = subprocess.Popen(
            [sys.executable, *arguments], env={**os.environ, **own, **environment}, stderr=subprocess.PIPE, text=True
        )
        return self.process

    def start_special(self, load: str, *, listener_seconds: float = 10.0) -> "subprocess.Popen[str]":
        return self.start("-c", SPECIAL_WORKER.format(load=load, listener_seconds=listener_seconds))

    def probe(self, path: str) -> int:
        """HTTP status of a path of the operations port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.operations_port}{path}") as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    running = WorkerProcess(tmp_path)
    yield running
    if running.process is not None:
        running.process.kill()
        running.process.communicate()


def free_ports(count: int) -> list[int]:
    with contextmanager(_bound_sockets)(count) as sockets:
        return [int(bound.getsockname()[1]) for bound in sockets]


def _bound_sockets(count: int) -> Iterator[list[socket.socket]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    yield sockets
    for bound in sockets:
        bound.close()


@asynccontextmanager
async def connected(worker: WorkerProcess, state: str | None = "ready") -> AsyncIterator[ZmqWorkerConnection]:
    """A connection whose worker has reached a state."""
    connection = ZmqWorkerConnection(worker.address)
    await connection.start()
    try:
        await in_state(connection, state, timeout_seconds=START_SECONDS)
        yield connection
    finally:
        await connection.close()


async def exit_of(process: "subprocess.Popen[str]") -> tuple[int, list[str]]:
    """Exit code and lines of stderr."""
    _, stderr = await asyncio.to_thread(process.communicate, timeout=START_SECONDS)
    return process.returncode, stderr.splitlines()


def test_a_worker_answers_over_the_network(worker):
    """A real process answers requests on one port and probes on the other."""

    async def main():
        worker.start()
        async with connected(worker) as connection:
            replies = await replies_of(connection, generate("r"))
            probes = [
                await asyncio.to_thread(worker.probe, path) for path in ("/livez", "/startupz", "/readyz", "/metrics")
            ]

            assert text_of(replies) == "abcab"
            assert probes == [200, 200, 200, 200]

    asyncio.run(main())


def test_a_killed_worker_fails_its_requests_at_once_and_comes_back(worker):
    """After SIGKILL open requests fail within a second; a new process at the address serves without further ado."""

    async def main():
        process = worker.start()
        async with connected(worker) as connection:
            stream = connection.stream(generate("r", max_tokens=MANY_TOKENS))
            await anext(stream)

            process.kill()
            killed = time.monotonic()
            with pytest.raises(WorkerLostError):
                [reply async for reply in stream]
            lost_after_seconds = time.monotonic() - killed
            await exit_of(process)
            worker.start()
            await in_state(connection, "ready", timeout_seconds=START_SECONDS)

            assert lost_after_seconds < 1
            assert text_of(await replies_of(connection, generate("next"))) == "abcab"

    asyncio.run(main())


def test_a_silent_worker_is_lost(worker):
    """A host that answers no heartbeats, as a stopped process, counts as gone after a few seconds."""

    async def main():
        process = worker.start()
        async with connected(worker) as connection:
            stream = connection.stream(generate("r", max_tokens=MANY_TOKENS))
            await anext(stream)

            process.send_signal(signal.SIGSTOP)

            with pytest.raises(WorkerLostError):
                [reply async for reply in stream]
            process.send_signal(signal.SIGCONT)

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(worker, number):
    """Open requests finish, new ones are refused, and the process exits with 0."""

    async def main():
        process = worker.start()
        async with connected(worker) as connection:
            stream = connection.stream(generate("old", max_tokens=100))
            first = await anext(stream)

            process.send_signal(number)
            await in_state(connection, "draining")
            (failure,) = await replies_of(connection, generate("new"))
            replies = [first, *[reply async for reply in stream]]
            code, _ = await exit_of(process)

            assert failure.kind == "unavailable"
            assert text_of(replies) == ("abc" * 34)[:100]
            assert code == 0

    asyncio.run(main())


def test_a_drain_ends_after_its_time(worker):
    """What takes longer than FLASHGEN_DRAIN_SECONDS ends with a failure; the exit code is 0 all the same."""

    async def main():
        process = worker.start(FLASHGEN_DRAIN_SECONDS="0.1")
        async with connected(worker) as connection:
            stream = connection.stream(generate("r", max_tokens=MANY_TOKENS))
            await anext(stream)

            process.terminate()
            replies = [reply async for reply in stream]
            code, _ = await exit_of(process)

            assert replies[-1].kind == "unavailable"
            assert code == 0

    asyncio.run(main())


def test_a_second_signal_ends_at_once(worker):
    """Somebody who presses Ctrl-C twice does not want to wait."""

    async def main():
        process = worker.start()
        async with connected(worker) as connection:
            stream = connection.stream(generate("r", max_tokens=MANY_TOKENS))
            await anext(stream)

            process.send_signal(signal.SIGINT)
            await in_state(connection, "draining")
            process.send_signal(signal.SIGINT)

            with pytest.raises(WorkerLostError):
                [reply async for reply in stream]
            assert (await exit_of(process))[0] == 0

    asyncio.run(main())


def test_a_worker_that_loads_can_be_ended(worker):
    """SIGTERM does not wait for weights, whatever the loading thread is doing."""

    async def main():
        process = worker.start_special(ENDLESS)
        async with connected(worker, "loading"):
            process.terminate()

            assert (await exit_of(process))[0] == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"FLASHGEN_CONFIG": "nowhere.yaml"}, "error: worker `fake`: nowhere.yaml: no such file"),
        ({"FLASHGEN_RPC_PORT": "many"}, "error: worker `fake`: FLASHGEN_RPC_PORT: expected a port from 0 to 65535"),
        (
            {"FLASHGEN_DRAIN_SECONDS": "-1"},
            "error: worker `fake`: FLASHGEN_DRAIN_SECONDS: expected a number of seconds",
        ),
        ({"FLASHGEN_FORK_SERVER": "yes"}, "error: worker `fake`: FLASHGEN_FORK_SERVER: expected 0 or 1, found 'yes'"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_78(worker, change, problem):
    """What no restart repairs is said in one line, and the exit code tells the supervisor."""
    process = worker.start(**change)

    code, lines = asyncio.run(exit_of(process))

    assert code == 78
    assert len(lines) == 1
    assert lines[0].startswith(problem)


def test_an_unknown_server_is_exit_78(worker):
    """A worker started under a name that the configuration does not have names those that it has."""
    process = worker.start("-m", "flashgen_runtime.testing.worker", "--server", "other")

    code, lines = asyncio.run(exit_of(process))

    assert (code, len(lines)) == (78, 1)
    assert lines[0].endswith("there is no server `other`, only `fake`")


def test_broken_weights_are_told_before_exit_78(worker):
    """The API server hears why, then the process exits with 78 and one line for people."""

    async def main():
        process = worker.start_special(TRUNCATED, listener_seconds=START_SECONDS)
        failures = []
        connection = ZmqWorkerConnection(worker.address)
        connection.on_change(lambda: failures.append(connection.status and connection.status.detail))
        await connection.start()

        code, lines = await exit_of(process)
        await connection.close()

        assert code == 78
        assert "model.safetensors: is truncated" in failures
        assert lines[-1] == "error: worker `fake`: model.safetensors: is truncated"

    asyncio.run(main())


def test_broken_weights_do_not_wait_for_ever(worker):
    """Without any API server the process ends after its time."""
    process = worker.start_special(TRUNCATED, listener_seconds=0.1)

    code, _ = asyncio.run(exit_of(process))

    assert code == 78


def test_a_taken_port_is_exit_1(worker):
    """Another process may be about to leave the port: the supervisor tries again."""
    with socket.create_server(("127.0.0.1", worker.rpc_port)):
        process = worker.start()

        code, lines = asyncio.run(exit_of(process))

    assert code == 1
    assert lines[-1] == f"error: worker `fake`: [Errno 98] Address already in use: 127.0.0.1:{worker.rpc_port}"


def test_a_taken_operations_port_is_exit_1(worker):
    """The second port counts as much as the first."""
    with socket.create_server(("127.0.0.1", worker.operations_port)):
        process = worker.start()

        code, lines = asyncio.run(exit_of(process))

    assert code == 1
    assert "in use" in lines[-1]


def test_a_crashed_engine_is_exit_1(worker):
    """Its requests fail with a reason, and the supervisor starts a fresh process."""

    async def main():
        process = worker.start_special(CRASHING)
        async with connected(worker) as connection:
            replies = await replies_of(connection, generate("r", max_tokens=10))
            code, lines = await exit_of(process)

            assert (replies[-1].kind, replies[-1].message) == ("internal", "the engine has crashed")
            assert code == 1
            assert any("RuntimeError: the fake engine fails" in line for line in lines)

    asyncio.run(main())


def test_rubbish_from_the_network_does_not_kill_a_worker(worker):
    """Bytes that are not ZeroMQ, and frames that are not messages, are ignored."""

    async def main():
        worker.start()
        async with connected(worker) as connection:
            with socket.create_connection(("127.0.0.1", worker.rpc_port)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\xff" * 1000)
            with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
                dealer.connect(f"tcp://{worker.address}")
                for frame in (b"", b"\xc1", b"\x91" * 10_000, b"\x92\xa6Cancel\x07"):
                    dealer.send(frame)

            replies = await replies_of(connection, generate("r"))

            assert text_of(replies) == "abcab"
            assert worker.process is not None
            assert worker.process.poll() is None

    asyncio.run(main())
