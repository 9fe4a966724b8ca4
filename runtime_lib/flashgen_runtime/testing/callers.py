"""Callers that behave as real ones do and test clients do not: they leave before their answer is complete."""

import asyncio
import json
from collections.abc import Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI

# Longer than a step of any fake engine, shorter than an answer of several steps.
FREED_WITHIN_SECONDS = 1.0


def is_freed_when_caller_leaves(app: FastAPI, path: str, body: Mapping[str, object]) -> bool:
    """Posts a request, leaves after the first piece of the answer, and says whether the service lets go of it.

    Starts and stops the application. True when the call ends and nothing is open within a second after the caller
    left: with a fake engine whose answer takes longer, only a cancelled request is gone by then.
    """
    return asyncio.run(_is_freed(app, path, body))


async def _is_freed(app: FastAPI, path: str, body: Mapping[str, object]) -> bool:
    async with app.router.lifespan_context(app):
        if not await _ends_when_caller_leaves(app, path, json.dumps(body).encode()):
            return False
        try:
            async with asyncio.timeout(FREED_WITHIN_SECONDS):
                await app.state.service.admission.drain()
        except TimeoutError:
            return False
        return True


async def _ends_when_caller_leaves(app: FastAPI, path: str, body: bytes) -> bool:
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    got_piece = asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            got_piece.set()

    call = asyncio.ensure_future(app(_scope(path, len(body)), incoming.get, send))
    answered = asyncio.ensure_future(got_piece.wait())
    await asyncio.wait([call, answered], return_when=asyncio.FIRST_COMPLETED)
    answered.cancel()
    incoming.put_nowait({"type": "http.disconnect"})
    ended, _ = await asyncio.wait([call], timeout=FREED_WITHIN_SECONDS)
    call.cancel()
    return bool(ended)


def _scope(path: str, length: int) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(length).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
