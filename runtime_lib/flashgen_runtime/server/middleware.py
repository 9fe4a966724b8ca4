"""What every request passes before it reaches a route, as plain ASGI; bounds on the body are in `request_body`."""

import re
import time
import uuid
from collections.abc import Iterable, Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashgen_runtime import metrics
from flashgen_runtime.server import request_log
from flashgen_runtime.server.errors import BUG, error_response

REQUEST_ID_HEADER = "x-request-id"

# Fit for a header and for a log line.
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestContext:
    """Gives a request its id, and a bug its answer: 500, without the traceback, which goes to the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        has_begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        request_log.request_id.set(request_id)
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            if has_begun:
                # Nothing can be said any more: the server closes the connection, and nobody takes the answer for whole.
                raise
            request_log.log_bug("a request failed")
            await error_response(BUG)(scope, receive, send_with_id)


class Measured:
    """Counts and times the requests of every api by name; other paths are not measured."""

    def __init__(self, app: ASGIApp, *, apis: Mapping[tuple[str, str], str]) -> None:
        self._app = app

        # By method and path.
        self._apis = apis

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        api = self._apis.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if api is None:
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            metrics.requests_total.labels(api, status).inc()
            metrics.request_seconds.labels(api).observe(time.perf_counter() - began)


class Paths:
    """Takes known paths with and without a slash at the end, without a redirect, and answers HEAD like GET."""

    def __init__(self, app: ASGIApp, *, paths: Iterable[str]) -> None:
        self._app = app
        known = set(paths)
        self._canonical = {_other(path): path for path in known if _other(path) not in known}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = self._canonical.get(scope["path"])
            if path is not None:
                scope = {**scope, "path": path, "raw_path": path.encode()}
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}
                send = _without_body(send)
        await self._app(scope, receive, send)


def _request_id(scope: Scope) -> str:
    wanted = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return wanted if _SANE_ID.fullmatch(wanted) else uuid.uuid4().hex


def _other(path: str) -> str:
    """The path with its last slash removed or added."""
    return path[:-1] if path.endswith("/") and path != "/" else f"{path}/"


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head
