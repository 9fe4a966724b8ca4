"""Generating text for one HTTP request, whatever its protocol: hooks, routing, one stream for all prompts, the answer.

What the answer looks like is left to a `Form`.
"""

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

from fastapi import Request, Response

from flashgen_runtime import metrics
from flashgen_runtime.config import Task
from flashgen_runtime.messages import GenerateRequest, TextDelta, TokenLogprob
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
    """How a protocol writes answers; everything it gives is encoded as JSON.

    Choices are numbered from 0, those of the first prompt first.
    """

    def whole(self, generations: Sequence[Generation]) -> object:
        """The answer to a request that does not stream."""

    def first_chunk(self, index: int) -> object | None:
        """What precedes the text."""

    def chunk(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> object:
        """New text, which may be empty, and what the caller asked to know of its tokens."""

    def last_chunk(self, index: int, finish_reason: str) -> object | None:
        """What follows the text."""

    def usage_chunk(self, generations: Sequence[Generation]) -> object | None:
        """What follows everything, if the caller asked for it."""


class _Work(NamedTuple):
    """One prompt on its way to a worker."""

    target: Target
    request: GenerateRequest

    # Number of its first choice in the answer.
    first_choice: int

    @property
    def num_choices(self) -> int:
        return self._param("n")

    @property
    def num_sequences(self) -> int:
        """What it takes of a worker's batch."""
        return max(self.num_choices, self._param("num_beams"))

    def _param(self, name: str) -> int:
        """As the request says, else the spec."""
        return getattr(self.request.params, name) or getattr(self.target.model.generation_params, name) or 1


class _Step(NamedTuple):
    """What one message of a worker brought one choice; the last one has the whole generation."""

    choice: int
    text: str
    logprobs: Sequence[TokenLogprob]
    generation: Generation | None


class _Choice:
    """One choice so far."""

    def __init__(self, *, has_logprobs: bool) -> None:
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] | None = [] if has_logprobs else None

    def add(self, delta: TextDelta) -> Generation | None:
        """The whole choice, when this delta is its last."""
        self._pieces.append(delta.text)
        if self._logprobs is not None:
            self._logprobs += delta.logprobs
        if delta.finish_reason is None:
            return None
        return Generation(
            "".join(self._pieces),
            delta.finish_reason,
            delta.prompt_tokens,
            delta.completion_tokens,
            delta.cached_tokens,
            delta.index,
            None if self._logprobs is None else tuple(self._logprobs),
        )


async def answer(
    request: Request,
    body: SamplingBody,
    prompts: Sequence[Prompt],
    *,
    api: str,
    hooks: Hooks,
    id_prefix: str,
    form: Callable[[AnswerHead], Form],
    logprobs: int | None = None,
    prediction: str | None = None,
    notice_without_template: str | None = None,
) -> Response:
    """Generates for every prompt and answers whole or streamed, as the body asks.

    Args:
        logprobs: how many alternatives of each token to report beside its own log probability, if any.
        prediction: what the answer will probably be.
        notice_without_template: the notice in a header if the model has no chat template.
    """
    service = service_of(request)
    answer_id = new_id(id_prefix)
    target = service.router.target(api, body.model, task=TASK)
    params = params_of(body)
    requests = [
        GenerateRequest(
            request_id=f"{answer_id}-{index}",
            model=target.model.id,
            prompt=prompt.text,
            messages=prompt.messages,
            params=params,
            logprobs=logprobs,
            prediction=prediction,
        )
        for index, prompt in enumerate(prompts)
    ]
    works = await _prepare(service, requests, target, hooks=hooks)
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
    service: Service, requests: Sequence[GenerateRequest], target: Target, *, hooks: Hooks
) -> list[_Work]:
    """The requests as the hook wants them; it may choose another model, or change how many choices there are."""
    works: list[_Work] = []
    num_choices = 0
    for asked in requests:
        wanted = await run_before(hooks, asked)
        is_same = wanted.model == target.model.id
        chosen = target if is_same else service.router.target(target.api, wanted.model, task=TASK)
        works.append(_Work(chosen, wanted, first_choice=num_choices))
        num_choices += works[-1].num_choices
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
            if step.text or step.logprobs:
                chunks.append(form.chunk(step.choice, step.text, step.logprobs))
            if step.generation is not None:
                generations.append(step.generation)
                chunks.append(form.last_chunk(step.choice, step.generation.finish_reason))
            if data := b"".join(frame(chunk) for chunk in chunks if chunk is not None):
                yield data
    usage = form.usage_chunk(generations)
    yield DONE_FRAME if usage is None else frame(usage) + DONE_FRAME


async def _generate_all(service: Service, works: Sequence[_Work], *, hooks: Hooks) -> AsyncGenerator[_Step, None]:
    with service.admit(works[0].target, places=sum(work.num_sequences for work in works)):
        async with aclosing(merged([_generate(service, work, hooks=hooks) for work in works])) as steps:
            async for step in steps:
                yield step


async def _generate(service: Service, work: _Work, *, hooks: Hooks) -> AsyncGenerator[_Step, None]:
    began = time.perf_counter()
    has_logprobs = work.request.logprobs is not None
    choices: defaultdict[int, _Choice] = defaultdict(lambda: _Choice(has_logprobs=has_logprobs))
    generations: list[Generation] = []
    has_text = False
    async with aclosing(service.replies(work.target, work.request)) as replies:
        async for reply in replies:
            assert isinstance(reply, TextDelta), "a worker answers a GenerateRequest with text"
            if reply.text and not has_text:
                has_text = True
                metrics.time_to_first_token_seconds.labels(work.target.api).observe(time.perf_counter() - began)
            generation = choices[reply.index].add(reply)
            if generation is not None:
                generations.append(generation)
            yield _Step(work.first_choice + reply.index, reply.text, reply.logprobs, generation)
    for generation in sorted(generations, key=lambda one: one.choice):
        await hooks.after_generate(work.request, generation)
