"""Runs a blocking function beside the event loop, in a thread that does not keep the process from ending."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


async def run_in_daemon_thread(function: Callable[[], _Result], *, name: str) -> _Result:
    """The function's result, or its exception. Cancelling stops the wait, not the function."""
    event_loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = event_loop.create_future()

    def run() -> None:
        try:
            result = function()
        except Exception as error:
            _settle(event_loop, future, future.set_exception, error)
        else:
            _settle(event_loop, future, future.set_result, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future


def _settle(
    event_loop: asyncio.AbstractEventLoop,
    future: "asyncio.Future[_Result]",
    settle: Callable[..., None],
    value: object,
) -> None:
    def settle_unless_cancelled() -> None:
        if not future.done():
            settle(value)

    # It raises when the event loop has ended, and nobody waits.
    with contextlib.suppress(RuntimeError):
        event_loop.call_soon_threadsafe(settle_unless_cancelled)
