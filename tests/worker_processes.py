"""Workers as processes of their own, for tests that kill them."""

import asyncio
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from flashgen_runtime.transport.zmq import ZmqWorkerConnection
from tests.runtime_workers import in_state, service_yaml

# Starting an interpreter takes long when other tests have the machine.
START_SECONDS = 60.0

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
