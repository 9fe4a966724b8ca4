"""The worker process: from the environment to an exit code.

0 after SIGTERM or SIGINT; 78 when configuration, weights or device are wrong, which no restart repairs; 1 for
everything that one may: a port in use, a download that failed, an engine that crashed.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from flashgen_runtime import timings
from flashgen_runtime.config import ServerConfig, load_config
from flashgen_runtime.errors import EXIT_CONFIG, ConfigError, DeviceError, DownloadError, WeightsError
from flashgen_runtime.freed_memory import use_one_arena
from flashgen_runtime.logs import fields, setup_logs
from flashgen_runtime.models.base import Library
from flashgen_runtime.operations import OperationsServer
from flashgen_runtime.transport.zmq import ZmqWorkerEndpoint
from flashgen_runtime.worker.ahead import work_ahead
from flashgen_runtime.worker.fork_server import fork_worker
from flashgen_runtime.worker.health import WorkerProbes
from flashgen_runtime.worker.loading import CheckpointLibrary
from flashgen_runtime.worker.model_manager import ModelManager
from flashgen_runtime.worker.model_operations import WorkerModels
from flashgen_runtime.worker.settings import WorkerSettings
from flashgen_runtime.worker.worker import Worker

log = logging.getLogger(__name__)

# How long a worker that cannot serve waits for an API server to hear why.
LISTENER_SECONDS = 10.0

EXIT_FAILURE = 1

# What no restart repairs.
_FINAL = (ConfigError, WeightsError, DeviceError)

MakeLibrary = Callable[[ServerConfig, WorkerSettings], Library]
WorkAhead = Callable[[ServerConfig, WorkerSettings], None]


def run_worker(server_name: str) -> NoReturn:
    """Serves the models of one server until SIGTERM; settings come from the environment. Ends the process."""
    run_worker_with(
        server_name,
        lambda server, settings: CheckpointLibrary(server, settings.models_folder),
        ahead=lambda server, settings: work_ahead(server, settings.models_folder),
    )


def run_worker_with(server_name: str, make_library: MakeLibrary, *, ahead: WorkAhead | None = None) -> NoReturn:
    """The same with models from elsewhere: for fakes.

    Args:
        server_name: as in the configuration.
        make_library: gives the models.
        ahead: what a fork server does before it forks the worker; `None` does without one.
    """
    setup_logs(f"worker:{server_name}")
    # Models come and go in threads of their own, within a budget.
    use_one_arena()
    try:
        exit_code = _run(server_name, make_library, ahead)
    except _FINAL as error:
        exit_code = _report(server_name, error, exit_code=EXIT_CONFIG)
    except (OSError, DownloadError) as error:
        exit_code = _report(server_name, error, exit_code=EXIT_FAILURE)
    _leave(exit_code)


def _run(server_name: str, make_library: MakeLibrary, ahead: WorkAhead | None) -> int:
    with timings.stage("configuration"):
        settings = WorkerSettings.from_environment(os.environ)
        server = _server_named(server_name, settings)
    if ahead is not None and settings.has_fork_server:
        # Goes on in the child.
        fork_worker(lambda: ahead(server, settings))
    return asyncio.run(_serve(server, settings, make_library(server, settings)))


def _server_named(name: str, settings: WorkerSettings) -> ServerConfig:
    config = load_config(settings.config_path)
    try:
        return config.server(name)
    except KeyError as error:
        known = ", ".join(f"`{server.name}`" for server in config.servers)
        raise ConfigError(settings.config_path, f"there is no server `{name}`, only {known}") from error


async def _serve(server: ServerConfig, settings: WorkerSettings, library: Library) -> int:
    """Binds both ports, serves until told to end, and gives the exit code.

    Raises:
        ConfigError, WeightsError, DeviceError: after the endpoint has published them.
        DownloadError: weights could not be fetched.
        OSError: a port is taken.
    """
    manager = ModelManager(server, library)
    endpoint = ZmqWorkerEndpoint(settings.bind_host, settings.rpc_port_of(server))
    worker = Worker(endpoint, manager, drain_seconds=settings.drain_seconds)
    port = settings.operations_port_of(server)
    models = WorkerModels(worker, manager)
    operations = OperationsServer(WorkerProbes(worker), host=settings.bind_host, port=port, models=models)
    try:
        await operations.start()
        log.info("listening", extra=fields(rpc_port=endpoint.port, operations_port=operations.port))
        _drain_on_signals(worker)
        return await _run_to_end(worker)
    finally:
        await operations.close()
        await worker.close()


async def _run_to_end(worker: Worker) -> int:
    try:
        await worker.run()
    except _FINAL:
        await worker.wait_for_listener(LISTENER_SECONDS)
        raise
    except DownloadError:
        raise
    except Exception:
        log.exception("the worker cannot go on")
        return EXIT_FAILURE
    return 0


def _drain_on_signals(worker: Worker) -> None:
    """The first signal drains, the second ends at once."""
    draining: list[asyncio.Task[None]] = []

    def on_signal() -> None:
        if draining:
            worker.stop()
        else:
            draining.append(asyncio.create_task(worker.drain()))

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)


def _report(server_name: str, error: Exception, *, exit_code: int) -> int:
    """One line for a person, whatever the message holds."""
    sys.stderr.write(f"error: worker `{server_name}`: {' '.join(str(error).split())}\n")
    return exit_code


def _leave(exit_code: int) -> NoReturn:
    """Ends the process, even while a daemon thread loads or steps: its native code would race the interpreter's end."""
    logging.shutdown()
    sys.stderr.flush()
    sys.stdout.flush()
    if any(thread.daemon for thread in threading.enumerate()):
        os._exit(exit_code)
    sys.exit(exit_code)
