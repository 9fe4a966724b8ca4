"""What a project's own `api/hooks.py` may do with a request and its answer, and how the runtime calls it."""

from typing import NamedTuple, Protocol

import msgspec

from flashgen_runtime.messages import FinishReason, GenerateRequest, TokenLogprob


class Generation(NamedTuple):
    """One complete generated text."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int

    # Of the prompt's tokens, those found in the prefix cache.
    cached_tokens: int = 0

    # Which of the request's choices it is.
    choice: int = 0

    # Of every token, when the caller asked.
    logprobs: tuple[TokenLogprob, ...] | None = None


class Hooks(Protocol):
    """The functions of `api/hooks.py`; the module itself is the object.

    A `RequestError` becomes the answer that it describes; any other exception counts as a bug: 500, and a traceback in
    the log.
    """

    async def before_generate(self, request: GenerateRequest) -> GenerateRequest:
        """Sees every request before it is routed, and may return a changed one; its `request_id` stays."""

    async def after_generate(self, request: GenerateRequest, result: Generation) -> None:
        """Sees every complete choice once; not called for an answer that failed or whose caller left."""


async def run_before(hooks: Hooks, request: GenerateRequest) -> GenerateRequest:
    """The request as the hook wants it."""
    changed: object = await hooks.before_generate(request)
    if not isinstance(changed, GenerateRequest):
        raise TypeError(f"`before_generate` must return a GenerateRequest, found {type(changed).__name__}")
    if changed.request_id == request.request_id:
        return changed
    return msgspec.structs.replace(changed, request_id=request.request_id)
