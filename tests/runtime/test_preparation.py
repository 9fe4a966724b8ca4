"""Where requests are encoded."""

import asyncio
import threading
from typing import Any

import pytest

from flashgen_runtime.messages import EmbedRequest, GenerateRequest, WorkRequest
from flashgen_runtime.worker.preparation import MAX_SHORT_LENGTH, Preparation

LONG = "x" * (MAX_SHORT_LENGTH + 1)


class NamesItsThread:
    """A model whose `prepare` tells in which thread it ran."""

    def prepare(self, _: WorkRequest) -> str:
        return threading.current_thread().name


def thread_of(request: WorkRequest) -> str:
    async def main() -> Any:
        preparation = Preparation()
        try:
            return await preparation.prepare(NamesItsThread(), request)  # type: ignore[arg-type]  # all that is used
        finally:
            preparation.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(request_id="1", model="m", prompt=LONG),
        GenerateRequest(request_id="1", model="m", prompt=list(range(MAX_SHORT_LENGTH + 1))),
        GenerateRequest(request_id="1", model="m", messages=[{"role": "user", "content": LONG}]),
        GenerateRequest(request_id="1", model="m", messages=[{"role": "user", "content": "x"}] * 100),
        GenerateRequest(request_id="1", model="m", prompt="x", prediction=LONG),
        EmbedRequest(request_id="1", model="m", inputs=["x" * 600, "x" * 600]),
    ],
    ids=["prompt", "ids", "content", "messages", "prediction", "inputs"],
)
def test_long_requests_do_not_hold_the_event_loop(request_: WorkRequest) -> None:
    """Replies of other requests go out while a long prompt is encoded."""
    assert thread_of(request_).startswith("prepare")


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(request_id="1", model="m", prompt="x"),
        GenerateRequest(request_id="1", model="m", messages=[{"role": "user", "content": "x"}]),
        EmbedRequest(request_id="1", model="m", inputs=["x", "y"]),
    ],
    ids=["prompt", "content", "inputs"],
)
def test_short_requests_are_encoded_at_once(request_: WorkRequest) -> None:
    """Waking a thread and being woken by it takes longer than encoding a few words."""
    assert thread_of(request_) == threading.main_thread().name
