"""Processes that serve on this machine: a free port, starting and ending them, waiting until they answer."""

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.models import ROOT


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], *, log: Path | None = None) -> Iterator[None]:
    """A process in the repository's folder, ended when the block ends; its output goes to `log`, if there is one."""
    with ExitStack() as stack:
        output = stack.enter_context(log.open("w")) if log else None
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_until_ready(url: str, *, limit_seconds: float = 60.0) -> None:
    """Returns when the URL answers with success; raises `OSError` if it does not in time."""
    deadline = time.monotonic() + limit_seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            # A process that starts tells nobody outside; asking is all there is.
            time.sleep(0.1)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
