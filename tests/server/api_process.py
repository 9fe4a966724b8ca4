"""Starts `serve_fakes` as a process of its own, and ends it."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from service_under_test import TIMEOUT_SECONDS

HERE = Path(__file__).parent
RUNTIME = HERE.parent.parent / "runtime_lib"


class ApiProcess(NamedTuple):
    """A running API server."""

    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def operations_url(self) -> str:
        return f"http://127.0.0.1:{self.port + 1}"


@contextmanager
def api_process(folder: Path, *, delay_seconds: float = 0.0) -> Iterator[ApiProcess]:
    """An API server with fake workers, ready to be asked."""
    port = _two_free_ports()
    process = subprocess.Popen(
        [sys.executable, str(HERE / "serve_fakes.py"), str(folder), str(port), str(delay_seconds)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(RUNTIME), str(HERE)))},
    )
    running = ApiProcess(process, port)
    try:
        _wait_until_ready(running)
        yield running
    finally:
        process.kill()
        process.wait()


def status_of(url: str) -> int:
    """The status of a GET; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def _wait_until_ready(running: ApiProcess) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while status_of(f"{running.url}/readyz") != 200:
        assert running.process.poll() is None, "the API server ended"
        assert time.monotonic() < deadline, "the API server did not become ready"
        time.sleep(0.05)


def _two_free_ports() -> int:
    """A free port whose successor is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
