"""The operations port: `/livez`, `/startupz`, `/readyz` and `/metrics` over a tiny HTTP/1.1 server.

Both kinds of process have one. A worker's also has `GET /models`, and loads and unloads by `POST /models/<name>/load`
and `/unload`. It reads no bodies and needs no web framework, so that a worker's image carries none. Every connection
is bounded in size and time.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import NamedTuple, Protocol
from urllib.parse import unquote

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


class ModelAnswer(NamedTuple):
    """What became of loading or unloading a model."""

    status: HTTPStatus
    body: dict[str, object]


class ModelOperations(Protocol):
    """What a process with models lets its operator do."""

    def list_models(self) -> list[dict[str, object]]:
        """All models, and where they are. Never blocks."""

    async def load_model(self, name: str) -> ModelAnswer:
        """Loads the model with this id or alias, and says so when that is done."""

    async def unload_model(self, name: str) -> ModelAnswer:
        """Unloads it, unless it is in use."""


class OperationsServer:
    """Serves probes and metrics on a port of its own.

    `port` 0 takes a free one; after `start`, `port` says which. Without `models` there are no routes for them.
    """

    def __init__(self, probes: Probes, *, host: str, port: int, models: ModelOperations | None = None) -> None:
        self._models = models
        self._routes: dict[str, Callable[[], _Response]] = {
            "/livez": lambda: _probe_response(probes.livez()),
            "/healthz": lambda: _probe_response(probes.livez()),
            "/startupz": lambda: _probe_response(probes.startupz()),
            "/readyz": lambda: _probe_response(probes.readyz()),
            "/metrics": _metrics_response,
        }
        if models is not None:
            self._routes["/models"] = lambda: _json_response(HTTPStatus.OK, models.list_models())
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
            method, response, keeps_alive = await self._respond(head)
            await _write(writer, response, head_only=method == "HEAD", keeps_alive=keeps_alive)
            if not keeps_alive:
                return

    async def _respond(self, head: bytes) -> "_Answer":
        request_line, *headers = head.decode("latin-1").split("\r\n")
        parts = request_line.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return _Answer("", _text_response(HTTPStatus.BAD_REQUEST), keeps_alive=False)
        method, target, version = parts
        keeps_alive = version == "HTTP/1.1" and not _ends_connection(headers)
        path = target.partition("?")[0]
        try:
            response = self._read(path) if method in ("GET", "HEAD") else await self._act(method, path)
        except Exception:
            log.exception("%s failed", path)
            response = _text_response(HTTPStatus.INTERNAL_SERVER_ERROR)
        if response.status is HTTPStatus.METHOD_NOT_ALLOWED:
            keeps_alive = False
        return _Answer(method, response, keeps_alive=keeps_alive)

    def _read(self, path: str) -> "_Response":
        route = self._routes.get(path)
        if route is not None:
            return route()
        if self._model_action(path) is not None:
            return _text_response(HTTPStatus.METHOD_NOT_ALLOWED, allow="POST")
        return _text_response(HTTPStatus.NOT_FOUND)

    async def _act(self, method: str, path: str) -> "_Response":
        act = self._model_action(path)
        if act is None:
            return _text_response(HTTPStatus.METHOD_NOT_ALLOWED, allow="GET, HEAD")
        if method != "POST":
            return _text_response(HTTPStatus.METHOD_NOT_ALLOWED, allow="POST")
        return _json_response(*await act())

    def _model_action(self, path: str) -> Callable[[], Awaitable[ModelAnswer]] | None:
        """What a path asks to do with a model; its name is percent-encoded, since ids hold slashes."""
        # An empty part, "models", the name, what to do.
        parts = path.split("/")
        if self._models is None or len(parts) != 4 or parts[:2] != ["", "models"]:
            return None
        actions = {"load": self._models.load_model, "unload": self._models.unload_model}
        act = actions.get(parts[3])
        return None if act is None else partial(act, unquote(parts[2]))


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


def _json_response(status: HTTPStatus, body: object) -> _Response:
    return _Response(status, "application/json", json.dumps(body).encode())


def _metrics_response() -> _Response:
    return _Response(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest())


def _text_response(status: HTTPStatus, *, allow: str | None = None) -> _Response:
    headers = () if allow is None else (f"Allow: {allow}",)
    return _Response(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode(), headers)


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
