"""Generating text for one HTTP request, whatever its protocol: hooks, routing, one stream for all prompts, the answer.

What the answer looks like is left to a `Form`.
"""

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

from fastapi import Request, Response

from flashgen_runtime import metrics
from flashgen_runtime.config import Task
from flashgen_runtime.messages import GenerateRequest, TextDelta
from flashgen_runtime.server.caller import while_connected
from flashgen_runtime.server.hooks import Generation, Hooks, run_before
from flashgen_runtime.server.merge import merged
from flashgen_runtime.server.responses import (
    NOTICE_HEADER,
    SYSTEM_FINGERPRINT,
    ignored_header,
    json_response,
    new_id,
    service_of,
)
from flashgen_runtime.server.router import Target
from flashgen_runtime.server.sampling import SamplingBody, ignored_fields, params_of
from flashgen_runtime.server.service import Service
from flashgen_runtime.server.streaming import DONE_FRAME, EventStream, begun, frame

TASK: Task = "text-generation"


class Prompt(NamedTuple):
    """What is to be continued; one of the two is set."""

    text: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None


class AnswerHead(NamedTuple):
    """What an answer and all its chunks have in common."""

    id: str
    created: int
    model: str

    def fields(self, object_name: str) -> dict[str, object]:
        """As OpenAI's protocols write it."""
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }


class Form(Protocol):
    """How a protocol writes answers; everything it gives is encoded as JSON. Prompts are numbered from 0."""

    def whole(self, generations: Sequence[Generation]) -> object:
        """The answer to a request that does not stream."""

    def first_chunk(self, index: int) -> object | None:
        """What precedes the text."""

    def chunk(self, index: int, text: str) -> object:
        """New text."""

    def last_chunk(self, index: int, finish_reason: str) -> object | None:
        """What follows the text."""

    def usage_chunk(self, generations: Sequence[Generation]) -> object | None:
        """What follows everything, if the caller asked for it."""


class _Work(NamedTuple):
    """One prompt on its way to a worker."""

    choice: int
    target: Target
    request: GenerateRequest


class _Step(NamedTuple):
    """What one message of a worker brought one prompt; the last one has the whole generation."""

    choice: int
    text: str
    generation: Generation | None


async def answer(
    request: Request,
    body: SamplingBody,
    prompts: Sequence[Prompt],
    *,
    api: str,
    hooks: Hooks,
    id_prefix: str,
    form: Callable[[AnswerHead], Form],
    notice_without_template: str | None = None,
) -> Response:
    """Generates for every prompt and answers whole or streamed, as the body asks.

    Args:
        notice_without_template: the notice in a header if the model has no chat template.
    """
    service = service_of(request)
    answer_id = new_id(id_prefix)
    works = await _prepare(service, body, prompts, api=api, hooks=hooks, answer_id=answer_id)
    target = works[0].target
    headers = ignored_header(ignored_fields(body))
    if notice_without_template and service.router.has_no_chat_template(target):
        headers[NOTICE_HEADER] = notice_without_template
    shape = form(AnswerHead(answer_id, int(time.time()), target.model.id))
    steps = _generate_all(service, works, hooks=hooks)
    if body.stream:
        return await _streamed(request, steps, shape, api=api, headers=headers)
    return await _whole(request, steps, shape, api=api, headers=headers)


async def _prepare(
    service: Service, body: SamplingBody, prompts: Sequence[Prompt], *, api: str, hooks: Hooks, answer_id: str
) -> list[_Work]:
    target = service.router.target(api, body.model, task=TASK)
    params = params_of(body)
    works = []
    for index, prompt in enumerate(prompts):
        asked = GenerateRequest(
            request_id=f"{answer_id}-{index}",
            model=target.model.id,
            prompt=prompt.text,
            messages=prompt.messages,
            params=params,
        )
        wanted = await run_before(hooks, asked)
        # The hook may have chosen another model.
        changed = target if wanted.model == target.model.id else service.router.target(api, wanted.model, task=TASK)
        works.append(_Work(index, changed, wanted))
    return works


async def _whole(
    request: Request, steps: AsyncGenerator[_Step, None], form: Form, *, api: str, headers: Mapping[str, str]
) -> Response:
    generations = await while_connected(request, _collect(steps), api=api)
    return json_response(form.whole(generations), headers)


async def _streamed(
    request: Request, steps: AsyncGenerator[_Step, None], form: Form, *, api: str, headers: Mapping[str, str]
) -> Response:
    started = await while_connected(request, begun(steps), api=api)
    return EventStream(_frames(started, form), api=api, headers=headers)


async def _collect(steps: AsyncGenerator[_Step, None]) -> list[Generation]:
    async with aclosing(steps):
        finished = {step.choice: step.generation async for step in steps if step.generation is not None}
    return [finished[index] for index in sorted(finished)]


async def _frames(steps: AsyncGenerator[_Step, None], form: Form) -> AsyncGenerator[bytes, None]:
    started: set[int] = set()
    generations: list[Generation] = []
    async with aclosing(steps):
        async for step in steps:
            chunks = []
            if step.choice not in started:
                started.add(step.choice)
                chunks.append(form.first_chunk(step.choice))
            if step.text:
                chunks.append(form.chunk(step.choice, step.text))
            if step.generation is not None:
                generations.append(step.generation)
                chunks.append(form.last_chunk(step.choice, step.generation.finish_reason))
            if data := b"".join(frame(chunk) for chunk in chunks if chunk is not None):
                yield data
    usage = form.usage_chunk(generations)
    yield DONE_FRAME if usage is None else frame(usage) + DONE_FRAME


async def _generate_all(service: Service, works: Sequence[_Work], *, hooks: Hooks) -> AsyncGenerator[_Step, None]:
    with service.admit(works[0].target, places=len(works)):
        async with aclosing(merged([_generate(service, work, hooks=hooks) for work in works])) as steps:
            async for step in steps:
                yield step


async def _generate(service: Service, work: _Work, *, hooks: Hooks) -> AsyncGenerator[_Step, None]:
    began = time.perf_counter()
    pieces: list[str] = []
    generation: Generation | None = None
    async with aclosing(service.replies(work.target, work.request)) as replies:
        async for reply in replies:
            assert isinstance(reply, TextDelta), "a worker answers a GenerateRequest with text"
            if reply.text and not pieces:
                metrics.time_to_first_token_seconds.labels(work.target.api).observe(time.perf_counter() - began)
            pieces.append(reply.text)
            generation = _generation("".join(pieces), reply) if reply.finish_reason is not None else None
            yield _Step(work.choice, reply.text, generation)
    assert generation is not None, "replies end with the final one"
    await hooks.after_generate(work.request, generation)


def _generation(text: str, last: TextDelta) -> Generation:
    assert last.finish_reason is not None, "only the last reply has one"
    return Generation(text, last.finish_reason, last.prompt_tokens, last.completion_tokens, last.cached_tokens)
