"""Several asynchronous streams as one, in the order in which items come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

from flashgen_runtime.server.caller import cancel

Item = TypeVar("Item")


class _Failure:
    """An error on its way through the queue."""

    def __init__(self, error: Exception) -> None:
        self.error = error


async def merged(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """All items of all streams, none of which may be `None`; the first error ends it.

    Closing it, or an error, closes every stream.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for single in only:
                yield single
        return
    # One place each: a reader that is slow slows the streams.
    queue: asyncio.Queue[Item | _Failure | None] = asyncio.Queue(len(streams))
    pumps = [asyncio.ensure_future(_pump(stream, queue)) for stream in streams]
    num_open = len(pumps)
    try:
        while num_open:
            item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, _Failure):
                raise item.error
            else:
                yield item
    finally:
        await cancel(*pumps)


async def _pump(stream: AsyncGenerator[Item, None], queue: asyncio.Queue[Item | _Failure | None]) -> None:
    last: _Failure | None = None
    async with aclosing(stream) as items:
        try:
            async for item in items:
                await queue.put(item)
        except Exception as error:
            last = _Failure(error)
    await queue.put(last)
