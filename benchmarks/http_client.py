"""A keep-alive HTTP/1.1 client on a bare socket: little of its own time in what it measures."""

import asyncio
import json
import time


class Connection:
    """One connection; `post` gives the seconds until the whole answer was read."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> "Connection":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def post(self, path: str, body: dict[str, object]) -> float:
        """Raises `RuntimeError` for any status but 200."""
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        started = time.perf_counter()
        self._writer.write(head.encode() + content)
        status_line, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        answer = await self._reader.readexactly(int(headers["content-length"]))
        seconds = time.perf_counter() - started
        if " 200 " not in status_line:
            raise RuntimeError(f"{path}: {status_line}: {answer[:300]!r}")
        return seconds
