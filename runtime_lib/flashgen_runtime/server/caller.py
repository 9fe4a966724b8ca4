"""Whether the one who asked is still there: work for a caller who left is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from flashgen_runtime import metrics

Result = TypeVar("Result")


class CallerLeftError(Exception):
    """The caller closed the connection before there was an answer."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result], *, api: str) -> Result:
    """The result of `work`, which is cancelled as soon as the caller leaves; then raises `CallerLeftError`."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(caller_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
    finally:
        await cancel(working, leaving)
    metrics.disconnects_total.labels(api).inc()
    raise CallerLeftError


async def caller_left(receive: Receive) -> None:
    """Returns when the connection is closed; the request's body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancels tasks and waits until each has cleaned up; what they raise is of no interest any more."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending)
    for task in tasks:
        # Marks the exception as seen, or asyncio would report it.
        if not task.cancelled():
            task.exception()
