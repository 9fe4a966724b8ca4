"""Builds, runs and ends samples as a user would: by the command line."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "samples"
READY_TIMEOUT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Running:
    """A service started by `flashgen run`."""

    port: int
    process: "subprocess.Popen[str]"
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[int]:
        """Process ids of the service's workers."""
        return [pid for pid, command in _descendants(self.process.pid) if "serve-worker" in command]

    def processes(self) -> list[int]:
        """Process ids of everything the service started."""
        return [pid for pid, _ in _descendants(self.process.pid)]

    def readyz(self) -> tuple[int, str]:
        """Status and body of the readiness probe; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_for_readyz(self, status: int, containing: str = "") -> str:
        """Waits until the probe answers so; gives its body, raises with the log after the time limit."""
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            found, body = self.readyz()
            if found == status and containing in body:
                return body
            time.sleep(0.1)
        raise AssertionError(
            f"/readyz never gave {status} {containing!r}, last {self.readyz()}:\n{self.log.read_text()}"
        )

    def wait_for_log(self, text: str) -> None:
        """Waits until the service has said something; raises with the log after the time limit."""
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)


def build(spec: Path, folder: Path) -> None:
    """`flashgen build SPEC -o FOLDER`, which must succeed."""
    subprocess.run([sys.executable, "-m", "flashgen", "build", str(spec), "-o", str(folder)], check=True, text=True)


@contextmanager
def run(spec: Path, cache: Path) -> Iterator[Running]:
    """`flashgen run SPEC` on a free port, ended by Ctrl-C's signal."""
    cache.mkdir(parents=True, exist_ok=True)
    log = cache / "service.log"
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flashgen", "run", str(spec), "--port", str(port)],
            env={**os.environ, "XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield Running(port, process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def copy_sample(name: str, model: str, folder: Path) -> Path:
    """A copy of a sample and its weights, laid out alike, to be damaged; gives the spec's path."""
    shutil.copytree(SAMPLES / "models" / model, folder / "models" / model)
    (folder / name).mkdir()
    spec = folder / name / "flashgen.yaml"
    # Two services of one test run must not want the same worker port.
    text = (SAMPLES / name / "flashgen.yaml").read_text()
    spec.write_text(re.sub(r"rpc_port: \d+", f"rpc_port: {free_port()}", text))
    return spec


def free_port() -> int:
    """A port nobody uses right now, low enough that port + 3000 exists."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
        if port < 62000:
            return port


def _descendants(root: int) -> list[tuple[int, str]]:
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):
            # It ended while we looked.
            continue
        children.setdefault(parent, []).append((int(entry.name), command))
    found: list[tuple[int, str]] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [pid for pid, _ in below]
    return found
