"""Bounds on what callers send: size, and the encodings that are undone."""

import zlib

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashgen_runtime.server.errors import Refusal, error_response

# The longest contexts there are fit several times.
MAX_BODY_BYTES = 16 * 1024 * 1024

_TOO_LARGE = Refusal(413, f"the body is larger than {MAX_BODY_BYTES} bytes", code="body_too_large")

# zlib's code for "gzip with its header and checksum".
_GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS


class BoundedBody:
    """Refuses a body that is too large, before or after it is unpacked, and unpacks gzip."""

    def __init__(self, app: ASGIApp, *, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        is_packed = headers.get("content-encoding", "identity") == "gzip"
        bounded = _Unpacker(receive, self._max_bytes) if is_packed else _Counter(receive, self._max_bytes)
        await self._app(scope, bounded.receive, send)

    def _refusal(self, headers: Headers) -> Refusal | None:
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._max_bytes:
            return _TOO_LARGE
        encoding = headers.get("content-encoding", "identity")
        if encoding not in ("identity", "gzip"):
            return Refusal(415, "the body's content-encoding must be gzip, or none", code="unsupported_encoding")
        return None


class _Counter:
    """Passes a body on, and stops it when it is too large."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._room = max_bytes

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._room -= len(message.get("body", b""))
            if self._room < 0:
                raise HTTPException(_TOO_LARGE.status, _TOO_LARGE.message)
        return message


class _Unpacker:
    """Passes a gzip body on unpacked, and stops it when it is too large or no gzip."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._room = max_bytes
        self._unpacker = zlib.decompressobj(_GZIP_WINDOW_BITS)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        body = self._unpack(message.get("body", b""))
        if not message.get("more_body", False) and not self._unpacker.eof:
            raise HTTPException(400, "the body is no whole gzip stream")
        return {**message, "body": body}

    def _unpack(self, packed: bytes) -> bytes:
        try:
            body = self._unpacker.decompress(packed, self._room + 1)
        except zlib.error as error:
            raise HTTPException(400, "the body is no gzip stream") from error
        self._room -= len(body)
        if self._room < 0:
            raise HTTPException(_TOO_LARGE.status, _TOO_LARGE.message)
        return body
