"""The replies of one request between the connection, which puts, and the request's reader, which gets."""

import asyncio
from collections import deque

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import Reply
from flashgen_runtime.transport.base import MAX_UNREAD_REPLIES


class ReplyQueue:
    """First in, first out, bounded, one reader. An error is read after the replies that came before it."""

    def __init__(self) -> None:
        self._unread: deque[Reply | RequestError] = deque()
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._unread) >= MAX_UNREAD_REPLIES

    def put(self, item: Reply | RequestError) -> None:
        """Adds a reply, or the error that ends the request; an error always has room."""
        self._unread.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> Reply:
        """The next reply; raises the error if that is next."""
        while not self._unread:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = self._unread.popleft()
        if isinstance(item, RequestError):
            raise item
        return item
