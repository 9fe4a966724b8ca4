"""The processes of a built project on this machine: their commands, environments and ports."""

import http.client
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from flashgen.example_calls import example_call
from flashgen.ports import HOST, Ports
from flashgen.resolved import ResolvedProject, ResolvedServer
from flashgen.supervisor import Command, Milestone, Supervisor
from flashgen.user_text import plain_text
from flashgen.worker_timings import WorkerTimings

_DEFAULT_PORT = 8000
_OPERATIONS_PORT = 9400

# Beyond what a process itself waits for its open requests.
_EXIT_MARGIN_SECONDS = 5
_PROBE_TIMEOUT_SECONDS = 1.0


class LocalService:
    """An API server and its workers, supervised in the foreground."""

    def __init__(
        self,
        project: ResolvedProject,
        folder: Path,
        *,
        python: str,
        models_folder: Path,
        port: int | None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Takes its ports; raises `UsageError` when `port` is in use."""
        self._project = project
        self._folder = folder
        self._python = python
        self._environ = {
            **environ,
            "PYTHONUNBUFFERED": "1",
            "FLASHGEN_MODELS": str(models_folder),
            "FLASHGEN_BIND_HOST": HOST,
            "FLASHGEN_API_HOST": HOST,
        }
        ports = Ports()
        self.port = ports.exactly(port) if port is not None else ports.near(_DEFAULT_PORT)
        self._operations_port = ports.near(_OPERATIONS_PORT)
        # By server name: where the API server reaches it, and its probes.
        self._rpc_ports = {server.name: ports.near(server.rpc_port) for server in project.servers}
        self._probe_ports = {server.name: ports.near(server.operations_port) for server in project.servers}

    @property
    def url(self) -> str:
        """Where callers reach it."""
        return f"http://{HOST}:{self.port}"

    def run(self, say: Callable[[str], None], *, tells_timings: bool = False) -> int:
        """Serves until a signal comes; the exit code.

        Args:
            say: prints a line.
            tells_timings: also says what the start of each worker took, when it is ready and at its first token.
        """
        grace = max(
            [
                self._project.shutdown.drain_seconds,
                *(server.shutdown.drain_seconds for server in self._project.servers),
            ]
        )
        supervisor = Supervisor(self.commands(), say=say, grace_seconds=grace + _EXIT_MARGIN_SECONDS)
        timings = [WorkerTimings(*probe) for probe in self._probe_ports.items()] if tells_timings else []
        ready = Milestone(self._is_ready, lambda: self._announce(say, timings))
        return supervisor.run(
            [ready, *(Milestone(worker.are_complete, partial(worker.tell, say)) for worker in timings)]
        )

    def commands(self) -> list[Command]:
        """The API server first: it ends first, and without it there is no service."""
        return [self._api_command(), *map(self._worker_command, self._project.servers)]

    def _api_command(self) -> Command:
        workers = {
            f"FLASHGEN_WORKER_{server.package.upper()}": f"{HOST}:{self._rpc_ports[server.name]}"
            for server in self._project.servers
        }
        ports = {
            "FLASHGEN_API_PORT": str(self.port),
            "FLASHGEN_OPERATIONS_PORT": str(self._operations_port),
        }
        return self._command("the API server", "serve-api", environ={**workers, **ports})

    def _worker_command(self, server: ResolvedServer) -> Command:
        ports = {
            "FLASHGEN_RPC_PORT": str(self._rpc_ports[server.name]),
            "FLASHGEN_WORKER_OPERATIONS_PORT": str(self._probe_ports[server.name]),
        }
        own = {name: plain_text(value) for name, value in server.env.items()}
        return self._command(f"the worker {server.name}", "serve-worker", server.name, environ={**own, **ports})

    def _command(self, name: str, verb: str, *arguments: str, environ: Mapping[str, str]) -> Command:
        return Command(
            name=name,
            argv=[self._python, "-m", "flashgen_runtime", verb, str(self._folder), *arguments],
            environ={**self._environ, **environ},
            folder=self._folder,
        )

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=_PROBE_TIMEOUT_SECONDS)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        return False

    def _announce(self, say: Callable[[str], None], timings: Sequence[WorkerTimings]) -> None:
        say(f"ready at {self.url}  (Ctrl-C ends it)")
        say(f"  {example_call(self._project, self.url)}")
        for worker in timings:
            if worker.are_known():
                worker.tell(say)
