import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from flashgen_runtime.server import create_app
from flashgen_runtime.testing import callers, fake_service
from tests.golden_trees import GOLDEN

CONFIG = GOLDEN / "01-complete-python" / "config" / "service.yaml"


def app_with(answer: Any, config: Path = CONFIG) -> FastAPI:
    """An application with one path that is answered by a plain ASGI callable."""
    app = create_app(fake_service(config), title="test", description="", version="1")
    app.mount("/answer", answer)
    return app


async def first_piece(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"piece", "more_body": True})


def test_an_answer_that_notices_the_end_of_its_caller_is_freed() -> None:
    """The caller's end arrives as a message after the first piece."""

    async def answer(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await first_piece(send)
        assert (await receive())["type"] == "http.disconnect"

    assert callers.is_freed_when_caller_leaves(app_with(answer), "/answer/", {})


def test_an_answer_that_goes_on_without_its_caller_is_not_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else generated projects' tests of cancellation would prove nothing."""
    monkeypatch.setattr(callers, "FREED_WITHIN_SECONDS", 0.05)

    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        await first_piece(send)
        await asyncio.Event().wait()

    assert not callers.is_freed_when_caller_leaves(app_with(answer), "/answer/", {})
