"""One HTTP request to an application without a network: the test sees each part of the answer, and can hang up."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from service_under_test import TIMEOUT_SECONDS


class Call:
    """A request that was sent, and what has come back of its answer."""

    def __init__(self, path: str, body: object) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_complete = False
        self._path = path
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self._news = asyncio.Event()

    @property
    def events(self) -> list[Any]:
        """The JSON of each complete event; "[DONE]" as it is."""
        frames = [frame for frame in self.body.decode().split("\n\n")[:-1] if frame.startswith("data: ")]
        data = [frame.removeprefix("data: ") for frame in frames]
        return [item if item == "[DONE]" else json.loads(item) for item in data]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def hang_up(self) -> None:
        """Closes the connection from the caller's side."""
        self._inbox.put_nowait({"type": "http.disconnect"})

    async def until(self, text: str) -> None:
        """Waits until the body holds a text."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while text.encode() not in self.body:
                self._news.clear()
                await self._news.wait()

    async def run(self, app: FastAPI) -> "Call":
        """Sends the request and waits for the end of the answer."""
        raw_path = self._path.encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": raw_path,
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await app(scope, self._receive, self._send)
        return self

    async def _receive(self) -> dict[str, Any]:
        return await self._inbox.get()

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message["body"]
            self.is_complete = not message.get("more_body", False)
        self._news.set()


@asynccontextmanager
async def started(app: FastAPI) -> AsyncIterator[FastAPI]:
    """The application between its start and its stop."""
    async with app.router.lifespan_context(app):
        yield app
