"""Answers that fail, stall or lose their caller, streamed and whole; the worker is the test itself."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from asgi_call import Call, started
from fastapi import FastAPI
from service_under_test import ScriptedConnection, application, scripted_service

from flashgen_runtime.errors import RequestError, WorkerLostError
from flashgen_runtime.messages import RequestFailure, TextDelta
from flashgen_runtime.server import streaming
from flashgen_runtime.server.service import Service

CHAT = "/v1/chat/completions"
STREAMED = {"messages": "hi", "stream": True}
WHOLE = {"messages": "hi"}


class Stage:
    """An application, its service and its one worker."""

    def __init__(self, folder: Path) -> None:
        self.worker = ScriptedConnection()
        self.service: Service = scripted_service(folder, self.worker)
        self.app: FastAPI = application(self.service)

    def send(self, text: str, *, is_last: bool = False) -> None:
        """The worker's next words."""
        reply = TextDelta(request_id="any", text=text, finish_reason="stop" if is_last else None, prompt_tokens=2)
        self.worker.replies.put_nowait(reply)

    def fail(self, error: Exception) -> None:
        """The connection's end of the request."""
        self.worker.replies.put_nowait(error)

    @property
    def open_requests(self) -> int:
        return sum(member.open_requests for pool in self.service.pools.values() for member in pool.members)


def play(folder: Path, scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Runs a scene with a started application."""

    async def main() -> None:
        stage = Stage(folder)
        async with started(stage.app):
            await scene(stage)

    asyncio.run(main())


def test_text_is_sent_as_it_comes(tmp_path: Path) -> None:
    """A piece of text reaches the caller before the next one exists."""

    async def scene(stage: Stage) -> None:
        call = Call(CHAT, STREAMED)
        running = asyncio.create_task(call.run(stage.app))
        for piece in ("one ", "żó", "łw"):
            stage.send(piece)
            await call.until(piece)
        stage.send("", is_last=True)
        await running

        assert call.is_complete
        assert call.events[-1] == "[DONE]"
        assert stage.open_requests == 0

    play(tmp_path, scene)


def test_a_lost_worker_ends_a_stream_with_an_error_event(tmp_path: Path) -> None:
    """After the first byte the error is an event whose `error` is an object, and no end mark follows."""

    async def scene(stage: Stage) -> None:
        call = Call(CHAT, STREAMED)
        stage.send("hello")
        stage.fail(WorkerLostError("10.0.0.1:6500"))
        await call.run(stage.app)

        assert call.status == 200
        error = call.events[-1]["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == ("server_error", "unavailable")
        assert call.is_complete

    play(tmp_path, scene)


@pytest.mark.parametrize("body", [STREAMED, WHOLE])
def test_a_worker_lost_before_the_first_token_is_a_plain_error(tmp_path: Path, body: dict[str, object]) -> None:
    """Nothing was sent yet: 503 with Retry-After, streamed or not."""

    async def scene(stage: Stage) -> None:
        stage.fail(WorkerLostError("10.0.0.1:6500"))
        call = await Call(CHAT, body).run(stage.app)

        assert call.status == 503
        assert int(call.headers["retry-after"]) > 0
        assert call.json["error"]["type"] == "server_error"

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("invalid_request", 400),
        ("context_length", 400),
        ("unknown_model", 404),
        ("overloaded", 503),
        ("unavailable", 503),
        ("internal", 500),
    ],
)
def test_a_workers_refusal_keeps_its_kind(tmp_path: Path, kind: str, status: int) -> None:
    """What a worker refuses has the status of its kind, the message and the field's name."""

    async def scene(stage: Stage) -> None:
        failure = RequestFailure(request_id="any", kind=kind, message="because", param="prompt")  # type: ignore[arg-type]  # from the table
        stage.worker.replies.put_nowait(failure)
        call = await Call(CHAT, STREAMED).run(stage.app)

        assert call.status == status
        assert (call.json["error"]["message"], call.json["error"]["param"]) == ("because", "prompt")

    play(tmp_path, scene)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_hanging_up_cancels_the_work(tmp_path: Path, is_streamed: bool) -> None:
    """A caller who leaves while the answer is made frees the worker and the place, in both modes."""

    async def scene(stage: Stage) -> None:
        call = Call(CHAT, {"messages": "hi", "stream": is_streamed})
        running = asyncio.create_task(call.run(stage.app))
        stage.send("some")
        if is_streamed:
            await call.until("some")
        else:
            await stage.worker.asked.wait()
        call.hang_up()
        await running

        assert stage.worker.cancelled == [request.request_id for request in stage.worker.requests]
        assert stage.open_requests == 0
        # Every place was given back.
        await asyncio.wait_for(stage.service.admission.drain(), 1)

    play(tmp_path, scene)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_hanging_up_before_the_first_token_cancels_all_prompts(tmp_path: Path, is_streamed: bool) -> None:
    """Every prompt of a request is cancelled, not only the one that answers next."""

    async def scene(stage: Stage) -> None:
        call = Call("/v1/completions", {"prompt": ["a", "b", "c"], "stream": is_streamed})
        running = asyncio.create_task(call.run(stage.app))
        await stage.worker.asked.wait()
        call.hang_up()
        await running

        assert len(stage.worker.requests) == 3
        assert sorted(stage.worker.cancelled) == sorted(request.request_id for request in stage.worker.requests)

    play(tmp_path, scene)


def test_one_failed_prompt_ends_the_others(tmp_path: Path) -> None:
    """A request with several prompts fails as a whole, and leaves nothing running."""

    async def scene(stage: Stage) -> None:
        stage.fail(RequestError("too long", kind="context_length", param="prompt"))
        call = await Call("/v1/completions", {"prompt": ["a", "b"]}).run(stage.app)

        assert (call.status, call.json["error"]["code"]) == (400, "context_length_exceeded")
        assert stage.open_requests == 0

    play(tmp_path, scene)


def test_a_silent_stream_is_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing comes, comment lines keep proxies from cutting the connection; clients ignore them."""
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.01)

    async def scene(stage: Stage) -> None:
        call = Call(CHAT, STREAMED)
        running = asyncio.create_task(call.run(stage.app))
        stage.send("a")
        await call.until(": keep-alive\n\n")
        stage.send("b", is_last=True)
        await running

        text = "".join(event["choices"][0]["delta"].get("content", "") for event in call.events[:-1])
        assert text == "ab"

    play(tmp_path, scene)


def test_a_request_that_waits_long_for_its_first_token_is_kept_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while of waiting the stream begins without text; what fails from then on is an event."""
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.01)

    async def scene(stage: Stage) -> None:
        call = Call(CHAT, STREAMED)
        running = asyncio.create_task(call.run(stage.app))
        await call.until(": keep-alive\n\n")
        stage.fail(RequestError("no room", kind="overloaded"))
        await running

        assert call.status == 200
        assert call.events[-1]["error"]["message"] == "no room"

    play(tmp_path, scene)


def test_a_bug_in_a_stream_says_nothing_about_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The caller learns that the server failed; the traceback is in the log."""

    async def scene(stage: Stage) -> None:
        call = Call(CHAT, STREAMED)
        stage.send("a")
        stage.fail(ZeroDivisionError("a secret"))
        await call.run(stage.app)

        assert call.events[-1]["error"]["type"] == "server_error"
        assert b"secret" not in call.body

    play(tmp_path, scene)
    assert "a secret" in caplog.text
