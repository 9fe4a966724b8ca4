"""A keep-alive HTTP/1.1 client on a bare socket: little of its own time in what it measures."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

# A whole answer, or the longest line of a stream, may be as long as this.
_LIMIT = 2**24


class Connection:
    """One connection; not to be shared by requests that overlap."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> "Connection":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=_LIMIT)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def post(self, path: str, body: dict[str, object]) -> float:
        """Seconds until the whole answer was read. Raises `RuntimeError` for any status but 200."""
        started = time.perf_counter()
        status, headers = await self._send(path, body)
        answer = await self._reader.readexactly(int(headers["content-length"]))
        seconds = time.perf_counter() - started
        if status != 200:
            raise RuntimeError(f"{path}: {status}: {answer[:300]!r}")
        return seconds

    async def stream(self, path: str, body: dict[str, object]) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a stream of server-sent events, each when it comes; `[DONE]` and comments are left out.

        Raises `RuntimeError` for any status but 200.
        """
        status, headers = await self._send(path, body)
        if status != 200:
            raise RuntimeError(f"{path}: {status}: {(await self._reader.read(300))!r}")
        if headers.get("transfer-encoding") != "chunked":
            raise RuntimeError(f"{path}: expected a chunked answer, found the headers {headers}")
        pending = b""
        async for chunk in self._chunks():
            *events, pending = (pending + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                for line in event.split(b"\n"):
                    if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                        yield json.loads(data)

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            yield await self._reader.readexactly(size)
            await self._reader.readline()
        await self._reader.readline()

    async def _send(self, path: str, body: dict[str, object]) -> tuple[int, dict[str, str]]:
        """The answer's status and headers, names in lower case."""
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        self._writer.write(head.encode() + content)
        status_line, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        return int(status_line.split()[1]), dict(line.lower().split(": ", 1) for line in lines if line)
