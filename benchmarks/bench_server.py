"""What a generated API costs: its requests per second and latency with the instant fake engine, beside a bare echo.

Run: python -m benchmarks.bench_server [--quick] [--only SYSTEM,…]
Both are FastAPI on uvicorn (uvloop, httptools), one process each, asked in turn within one run. The generated API
parses and checks an OpenAI chat request, sends it over ZeroMQ to a worker process with a fake engine that answers at
once, and builds the answer; the echo returns its body. "added" is the difference of the two medians.

A request passes eight sleeping threads on its way. Where processors are virtual, waking one that fell asleep takes the
host longer than all of our work, so requests one at a time are measured twice: on an otherwise idle machine, and with
processes of the lowest priority that keep the processors awake, as a working engine does. The aim is about the second.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.generated_service import generated_service
from benchmarks.http_client import Connection
from benchmarks.local_processes import free_port, running, wait_until_ready
from benchmarks.report import Aim, Row, print_report, row_of

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "samples" / "01-complete-python" / "flashgen.yaml"
SERVER = "stdlib-coder"
CHAT = "/v1/chat/completions"
BODY: dict[str, object] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
ADDED_P50_MS = 1.5
AWAKE = "1 at a time, awake"


def main() -> None:
    """Starts both servers, measures them in turn, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and requests")
    parser.add_argument("--only", default="flashgen,bare echo", help="systems, separated by commas")
    arguments = parser.parse_args()
    quick, chosen = arguments.quick, arguments.only.split(",")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        systems = {"flashgen": lambda: _generated(folder), "bare echo": _echo}
        ports = {name: stack.enter_context(systems[name]()) for name in chosen}
        rows, aims = asyncio.run(_measure(ports, rounds=3 if quick else 7, requests=200 if quick else 1000))
    print_report("server", rows, aims, ["fastapi", "uvicorn", "pydantic", "pyzmq", "msgspec"])


async def _measure(ports: dict[str, int], *, rounds: int, requests: int) -> tuple[list[Row], list[Aim]]:
    for port in ports.values():
        await _load(port, connections=4, requests=requests)
    values: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        await _one_at_a_time(ports, requests, "1 at a time, idle", values)
        with _processors_awake():
            await _one_at_a_time(ports, requests, AWAKE, values)
        for system, port in ports.items():
            _, rate = await _load(port, connections=32, requests=2 * requests)
            values.setdefault((system, "32 at a time", "requests/s"), []).append(rate)
    values |= _added(values)
    rows = {key: row_of(each, system=key[0], workload=key[1], metric=key[2]) for key, each in values.items()}
    what = "milliseconds added at p50 over a bare FastAPI echo, one request at a time, processors awake"
    added = rows.get(("added", AWAKE, "p50 ms"))
    return list(rows.values()), [Aim(id="added-p50", what=what, aim=ADDED_P50_MS, value=added.value)] if added else []


def _added(values: dict[tuple[str, str, str], list[float]]) -> dict[tuple[str, str, str], list[float]]:
    """By workload and metric: what flashgen takes beyond the echo, round by round."""
    return {
        ("added", workload, metric): [
            ours - bare for ours, bare in zip(each, values["bare echo", workload, metric], strict=True)
        ]
        for (system, workload, metric), each in values.items()
        if system == "flashgen" and metric.endswith(" ms") and ("bare echo", workload, metric) in values
    }


async def _one_at_a_time(
    ports: dict[str, int], requests: int, workload: str, values: dict[tuple[str, str, str], list[float]]
) -> None:
    for system, port in ports.items():
        seconds, rate = await _load(port, connections=1, requests=requests)
        milliseconds = sorted(1000 * value for value in seconds)
        found = {
            "p50 ms": milliseconds[len(milliseconds) // 2],
            "p99 ms": milliseconds[int(len(milliseconds) * 0.99)],
            "requests/s": rate,
        }
        for metric, value in found.items():
            values.setdefault((system, workload, metric), []).append(value)


async def _load(port: int, *, connections: int, requests: int) -> tuple[list[float], float]:
    """Seconds of each request, and requests per second over all connections."""

    async def one_connection() -> list[float]:
        async with Connection(port) as connection:
            return [await connection.post(CHAT, BODY) for _ in range(requests // connections)]

    started = time.perf_counter()
    seconds = [
        value for values in await asyncio.gather(*(one_connection() for _ in range(connections))) for value in values
    ]
    return seconds, len(seconds) / (time.perf_counter() - started)


@contextmanager
def _processors_awake() -> Iterator[None]:
    """One process of the lowest priority per processor, which gives way to everything else."""
    spin = "import os\nos.nice(19)\nwhile True: pass"
    spinners = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


@contextmanager
def _generated(folder: Path) -> Iterator[int]:
    """The sample's API process and a worker process with a fake engine; gives the API's port."""
    config = str(folder / "config" / "service.yaml")
    worker = [sys.executable, "-m", "flashgen_runtime.testing.worker", "--config", config, "--server", SERVER]
    with generated_service(SAMPLE, folder, server=SERVER, worker=worker) as port:
        yield port


@contextmanager
def _echo() -> Iterator[int]:
    port = free_port()
    with running([sys.executable, "-m", "benchmarks.peers.echo", str(port)], os.environ):
        wait_until_ready(f"http://127.0.0.1:{port}/readyz")
        yield port


if __name__ == "__main__":
    main()
