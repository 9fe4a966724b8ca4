"""The operations port: `/livez`, `/startupz`, `/readyz` and `/metrics` over a tiny HTTP/1.1 server.

Both kinds of process have one. It answers GET and HEAD, reads no bodies, and needs no web framework, so that a worker's
image carries none. Every connection is bounded in size and time.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

log = logging.getLogger(__name__)

# Request line and headers together; probes and scrapers send a few hundred bytes.
MAX_REQUEST_BYTES = 8192
MAX_CONNECTIONS = 64

# For a whole request on a new connection, and between two requests on an open one.
READ_TIMEOUT_SECONDS = 15.0
WRITE_TIMEOUT_SECONDS = 15.0


class Probe(NamedTuple):
    """The answer of one probe."""

    ok: bool
    body: dict[str, object]
    retry_after_seconds: int | None = None


class Probes(Protocol):
    """What a process says about itself. Called on the event loop, and never blocks."""

    def livez(self) -> Probe:
        """Whether the process makes progress; if not, it is restarted."""

    def startupz(self) -> Probe:
        """Whether start-up is over."""

    def readyz(self) -> Probe:
        """Whether new requests should come here."""


class OperationsServer:
    """Serves probes and metrics on a port of its own.

    `port` 0 takes a free one; after `start`, `port` says which.
    """

    def __init__(self, probes: Probes, *, host: str, port: int) -> None:
        self._routes: dict[str, Callable[[], _Response]] = {
            "/livez": lambda: _probe_response(probes.livez()),
            "/healthz": lambda: _probe_response(probes.livez()),
            "/startupz": lambda: _probe_response(probes.startupz()),
            "/readyz": lambda: _probe_response(probes.readyz()),
            "/metrics": _metrics_response,
        }
        self.host = host
        self.port = port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Binds the port; raises `OSError` when it is taken."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=MAX_REQUEST_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Frees the port and ends open connections."""
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio.start_server runs its callback in a task"
        self._connections.add(task)
        try:
            if len(self._connections) <= MAX_CONNECTIONS:
                await self._answer_requests(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # the other side left or dawdled: nothing to tell it
        except asyncio.CancelledError:
            pass  # `close`; a cancelled callback would be reported as an unhandled error
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                await _write(writer, _text_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), head_only=False)
                return
            method, response, keeps_alive = self._respond(head)
            await _write(writer, response, head_only=method == "HEAD", keeps_alive=keeps_alive)
            if not keeps_alive:
                return

    def _respond(self, head: bytes) -> "_Answer":
        request_line, *headers = head.decode("latin-1").split("\r\n")
        parts = request_line.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return _Answer("", _text_response(HTTPStatus.BAD_REQUEST), keeps_alive=False)
        method, target, version = parts
        keeps_alive = version == "HTTP/1.1" and not _ends_connection(headers)
        if method not in ("GET", "HEAD"):
            return _Answer(method, _text_response(HTTPStatus.METHOD_NOT_ALLOWED), keeps_alive=False)
        return _Answer(method, self._route(target.partition("?")[0]), keeps_alive=keeps_alive)

    def _route(self, path: str) -> "_Response":
        route = self._routes.get(path)
        if route is None:
            return _text_response(HTTPStatus.NOT_FOUND)
        try:
            return route()
        except Exception:
            log.exception("%s failed", path)
            return _text_response(HTTPStatus.INTERNAL_SERVER_ERROR)


class _Response(NamedTuple):
    status: HTTPStatus
    content_type: str
    body: bytes
    headers: tuple[str, ...] = ()


class _Answer(NamedTuple):
    method: str
    response: _Response
    keeps_alive: bool


def _probe_response(probe: Probe) -> _Response:
    status = HTTPStatus.OK if probe.ok else HTTPStatus.SERVICE_UNAVAILABLE
    retry = () if probe.retry_after_seconds is None else (f"Retry-After: {probe.retry_after_seconds}",)
    return _Response(status, "application/json", json.dumps(probe.body).encode(), retry)


def _metrics_response() -> _Response:
    return _Response(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest())


def _text_response(status: HTTPStatus) -> _Response:
    allow = ("Allow: GET, HEAD",) if status is HTTPStatus.METHOD_NOT_ALLOWED else ()
    return _Response(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode(), allow)


def _ends_connection(headers: list[str]) -> bool:
    """Whether the client closes, or announces a body, which is not read here."""
    names = {
        name.strip().lower(): value.strip().lower() for name, _, value in (line.partition(":") for line in headers)
    }
    return names.get("connection") == "close" or "transfer-encoding" in names or names.get("content-length", "0") != "0"


async def _write(
    writer: asyncio.StreamWriter, response: _Response, *, head_only: bool, keeps_alive: bool = False
) -> None:
    head = [
        f"HTTP/1.1 {response.status.value} {response.status.phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Cache-Control: no-store",
        f"Connection: {'keep-alive' if keeps_alive else 'close'}",
        *response.headers,
    ]
    writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + (b"" if head_only else response.body))
    async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
        await writer.drain()
