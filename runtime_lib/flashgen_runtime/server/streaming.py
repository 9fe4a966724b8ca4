"""Server-sent events: frames, keep-alive comments, and the end of a stream whose caller leaves or whose work fails."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from flashgen_runtime import metrics
from flashgen_runtime.errors import RequestError
from flashgen_runtime.server.caller import caller_left, cancel
from flashgen_runtime.server.errors import BUG, Refusal, refusal_of
from flashgen_runtime.server.request_log import log_bug, log_refusal

# Proxies commonly cut connections that were silent for 30 or 60 seconds.
KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE_FRAME = b": keep-alive\n\n"
DONE_FRAME = b"data: [DONE]\n\n"

_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}

Item = TypeVar("Item")


def frame(data: object) -> bytes:
    """One event; JSON has no raw newlines, so a single `data:` line holds it."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


async def begun(items: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
    """The same items, once the first is there or its caller has waited `KEEP_ALIVE_SECONDS`; raises its error.

    So an error before the first item can still become a plain HTTP answer.
    """
    first = asyncio.ensure_future(anext(items))
    try:
        await asyncio.wait({first}, timeout=KEEP_ALIVE_SECONDS)
        if first.done():
            first.result()
    except BaseException:
        await cancel(first)
        await items.aclose()
        raise
    return _continued(first, items)


async def _continued(first: asyncio.Future[Item], items: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
    async with aclosing(items):
        try:
            yield await first
        finally:
            await cancel(first)
        async for item in items:
            yield item


class EventStream(Response):
    """Sends frames as they come, comments while none come, and one last frame with the error if there is one."""

    def __init__(self, frames: AsyncGenerator[bytes, None], *, api: str, headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, **headers})
        self._frames = frames
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # ASGI's signature
        body = _Body(send)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.ensure_future(self._send_frames(body))
        leaving = asyncio.ensure_future(caller_left(receive))
        keeping_alive = asyncio.ensure_future(body.keep_alive())
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                metrics.disconnects_total.labels(self._api).inc()
        finally:
            await cancel(sending, leaving, keeping_alive)

    async def _send_frames(self, body: "_Body") -> None:
        async with aclosing(self._frames) as frames:
            try:
                async for data in frames:
                    await body.send(data)
            except RequestError as error:
                refusal = refusal_of(error)
                log_refusal(refusal)
                await body.send(_error_frame(refusal))
            except Exception:
                log_bug("the stream was cut")
                await body.send(_error_frame(BUG))
        await body.end()


class _Body:
    """The body of a streamed answer; two tasks write to it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = asyncio.Lock()
        self._has_sent = False

    async def send(self, data: bytes) -> None:
        await self._write({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._write({"type": "http.response.body", "body": b"", "more_body": False})

    async def keep_alive(self) -> None:
        """Sends a comment after every silent period; runs until it is cancelled."""
        while True:
            self._has_sent = False
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            if not self._has_sent:
                await self.send(KEEP_ALIVE_FRAME)

    async def _write(self, message: Message) -> None:
        async with self._lock:
            self._has_sent = True
            await self._send(message)


def _error_frame(refusal: Refusal) -> bytes:
    return frame({"error": refusal.details})
