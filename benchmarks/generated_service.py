"""A generated project's API process and one worker process on free ports of this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.local_processes import free_port, running, wait_until_ready

READY_SECONDS = 120.0


@contextmanager
def generated_service(
    spec: Path,
    folder: Path,
    *,
    server: str,
    worker: Sequence[str] | None = None,
    models: Path | None = None,
    log: Path | None = None,
) -> Iterator[int]:
    """Builds the spec into `folder` and runs it until the block ends; gives the API's port.

    Args:
        spec: a file with one server.
        folder: where the project goes.
        server: the server's name in the spec.
        worker: command line of another worker process, such as one with a fake engine; it runs in the project.
        models: what `FLASHGEN_MODELS` shall be, for models that lie in folders.
        log: beginning of the name of files that take the processes' output; none leaves it where ours goes.
    """
    build = [sys.executable, "-m", "flashgen", "build", str(spec), "-o", str(folder)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    port, operations, rpc, worker_operations = (free_port() for _ in range(4))
    environment = {
        **os.environ,
        "FLASHGEN_CONFIG": "config/service.yaml",
        "FLASHGEN_API_HOST": "127.0.0.1",
        "FLASHGEN_API_PORT": str(port),
        "FLASHGEN_OPERATIONS_PORT": str(operations),
        f"FLASHGEN_WORKER_{server.upper().replace('-', '_')}": f"127.0.0.1:{rpc}",
        "FLASHGEN_BIND_HOST": "127.0.0.1",
        "FLASHGEN_RPC_PORT": str(rpc),
        "FLASHGEN_WORKER_OPERATIONS_PORT": str(worker_operations),
        **({"FLASHGEN_MODELS": str(models)} if models else {}),
    }
    runtime = [sys.executable, "-m", "flashgen_runtime"]
    serve_worker = worker or [*runtime, "serve-worker", str(folder), server]
    serve_api = [*runtime, "serve-api", str(folder)]
    logs = {part: log and log.with_name(f"{log.name}-{part}.log") for part in ("worker", "api")}
    with (
        running(serve_worker, environment, log=logs["worker"]),
        running(serve_api, environment, log=logs["api"]),
    ):
        wait_until_ready(f"http://127.0.0.1:{port}/readyz", limit_seconds=READY_SECONDS)
        yield port
