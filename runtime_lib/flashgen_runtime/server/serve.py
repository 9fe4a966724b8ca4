"""Runs an application as a process: HTTP and operations port on one loop, and an end that cuts nobody off."""

import asyncio
import logging
import signal
from types import FrameType

import uvicorn
import uvloop
from fastapi import FastAPI

from flashgen_runtime.logs import fields, setup_logs
from flashgen_runtime.operations import OperationsServer
from flashgen_runtime.server.service import Service

log = logging.getLogger(__name__)

# Longer than the idle time-out of common load balancers, which then close first and never meet a closed connection.
KEEP_ALIVE_SECONDS = 75

# Every answer has an end when the drain is over; this is for its last bytes.
LAST_BYTES_SECONDS = 2


def serve(app: FastAPI, *, host: str, port: int, operations_port: int, drain_seconds: float) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    From the signal on `/readyz` says 503 and new requests are refused; open ones have `drain_seconds` to finish, and
    then end with an error, as they do at once after a second signal.
    """
    setup_logs("api")
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=LAST_BYTES_SECONDS,
    )
    service: Service = app.state.service
    operations = OperationsServer(service, host=host, port=operations_port)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_both(config, service, operations, drain_seconds=drain_seconds))


async def _serve_both(
    config: uvicorn.Config, service: Service, operations: OperationsServer, *, drain_seconds: float
) -> None:
    try:
        await operations.start()
    except OSError as error:
        log.error("the operations port cannot be opened: %s", error)
        raise SystemExit(1) from error
    try:
        await _DrainingServer(config, service, drain_seconds=drain_seconds).serve()
    finally:
        await operations.close()


class _DrainingServer(uvicorn.Server):
    """Uvicorn that keeps answering while it drains, and whose process then ends with 0. Made on its loop."""

    def __init__(self, config: uvicorn.Config, service: Service, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # a signal handler's signature
        """Runs between two bytecodes of whatever is being done, so it does nothing by itself."""
        self._loop.call_soon_threadsafe(self._on_signal, sig)

    def _on_signal(self, sig: int) -> None:
        if self._draining is None:
            log.info("draining", extra=fields(signal=signal.Signals(sig).name, seconds=self._drain_seconds))
            self._draining = asyncio.ensure_future(self._service.drain(self._drain_seconds))
            self._ending = asyncio.ensure_future(self._end(self._draining))
        else:
            self._draining.cancel()

    async def _end(self, draining: asyncio.Task[None]) -> None:
        await asyncio.wait({draining})
        # What is still open now learns that its worker is out of reach: an error, not a cut connection.
        await self._service.close()
        self.should_exit = True
