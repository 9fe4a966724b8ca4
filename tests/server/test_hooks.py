"""What a project's hooks may do, and what becomes of their failures."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from asgi_call import Call, started
from service_under_test import RecordingHooks, ScriptedConnection, application, scripted_service

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import GenerateRequest, GenerationParams, TextDelta
from flashgen_runtime.server.hooks import Generation

CHAT = "/v1/chat/completions"


class ShorteningHooks(RecordingHooks):
    """Changes the request, its id too."""

    async def before_generate(self, request: GenerateRequest) -> GenerateRequest:
        changed = msgspec.structs.replace(request, request_id="mine", params=GenerationParams(max_tokens=1))
        self.requests.append(msgspec.structs.replace(changed, request_id=request.request_id))
        return changed


class RefusingHooks(RecordingHooks):
    async def before_generate(self, request: GenerateRequest) -> GenerateRequest:  # noqa: ARG002  # refuses all
        raise RequestError("not on Sundays", kind="invalid_request", param="messages")


class ForgetfulHooks(RecordingHooks):
    async def before_generate(self, request: GenerateRequest) -> GenerateRequest:  # noqa: ARG002  # forgets all
        return None  # type: ignore[return-value]  # the mistake that is tested


class BrokenAfterwards(RecordingHooks):
    async def after_generate(self, request: GenerateRequest, result: Generation) -> None:  # noqa: ARG002  # fails
        raise KeyError("a secret")


def ask(folder: Path, hooks: RecordingHooks, *, is_streamed: bool = False) -> tuple[Call, ScriptedConnection]:
    """One request, answered with "ok"."""

    async def main() -> tuple[Call, ScriptedConnection]:
        worker = ScriptedConnection()
        worker.replies.put_nowait(TextDelta(request_id="any", text="o", completion_tokens=1))
        worker.replies.put_nowait(TextDelta(request_id="any", text="k", finish_reason="stop", completion_tokens=2))
        async with started(application(scripted_service(folder, worker), hooks)) as app:
            return await Call(CHAT, {"messages": "hi", "stream": is_streamed}).run(app), worker

    return asyncio.run(main())


def test_changed_request_is_what_the_worker_gets(tmp_path: Path) -> None:
    """A hook may change everything but the id by which the answer is found."""
    call, worker = ask(tmp_path, ShorteningHooks())

    sent = worker.requests[0]
    assert call.status == 200
    assert isinstance(sent, GenerateRequest)
    assert sent.params.max_tokens == 1
    assert sent.request_id != "mine"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_after_generate_sees_the_whole_answer_once(tmp_path: Path, is_streamed: bool) -> None:
    """It is called once per answer with the whole text, streamed or not."""
    hooks = RecordingHooks()
    ask(tmp_path, hooks, is_streamed=is_streamed)

    assert [(result.text, result.finish_reason, result.completion_tokens) for result in hooks.results] == [
        ("ok", "stop", 2)
    ]


def test_refusal_of_a_hook_is_the_answer(tmp_path: Path) -> None:
    """A RequestError has its status and reaches no worker."""
    call, worker = ask(tmp_path, RefusingHooks())

    assert (call.status, call.json["error"]["message"]) == (400, "not on Sundays")
    assert worker.requests == []


def test_hook_that_returns_nothing_is_a_bug_with_a_clear_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A forgotten return is 500, and the log says what is missing."""
    call, _ = ask(tmp_path, ForgetfulHooks())

    assert call.status == 500
    assert "`before_generate` must return a GenerateRequest, found NoneType" in caplog.text


@pytest.mark.parametrize("is_streamed", [False, True])
def test_bug_in_a_hook_is_logged_and_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_streamed: bool
) -> None:
    """A hook that fails afterwards gives 500, or an error event where the stream has begun."""
    call, _ = ask(tmp_path, BrokenAfterwards(), is_streamed=is_streamed)

    error = call.events[-1]["error"] if is_streamed else call.json["error"]
    assert call.status == (200 if is_streamed else 500)
    assert error["type"] == "server_error"
    assert b"secret" not in call.body
    assert "a secret" in caplog.text
