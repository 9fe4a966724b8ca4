"""`/v1/completions`: texts to be continued."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Request, Response
from pydantic import BaseModel, Field

from flashgen_runtime.messages import TokenLogprob
from flashgen_runtime.server.generation import AnswerHead, Prompt, answer
from flashgen_runtime.server.hooks import Generation, Hooks
from flashgen_runtime.server.openai.logprobs import MAX_TOP_LOGPROBS, CompletionLogprobs, completion_logprobs
from flashgen_runtime.server.openai.token_ids import TokenIds, as_list_of_inputs
from flashgen_runtime.server.sampling import SamplingBody, includes_usage
from flashgen_runtime.server.usage import Usage, usage_of

MAX_PROMPTS = 128


class CompletionRequest(SamplingBody):
    """One prompt or several; each gives `n` choices."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    ) = Field(description="Text or token ids, or a list of either.")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="Report the log probability of every token, and of so many likeliest ones at its place."
    )


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None


if TYPE_CHECKING:
    # A project may declare its outputs more loosely, as in `choices: list[dict[str, Any]]`.
    Choices = list[Any]
    AnyUsage = Any
else:
    Choices = list[CompletionChoice]
    AnyUsage = Usage


class Completion(BaseModel):
    """The whole answer."""

    id: str
    object: str = "text_completion"
    created: int = Field(description="Unix time in seconds.")
    model: str
    system_fingerprint: str | None = None
    choices: Choices
    usage: AnyUsage


class _CompletionForm:
    """Writes answers as completions; the chunks of a stream have the same shape."""

    def __init__(self, head: AnswerHead, *, has_usage: bool) -> None:
        self._head = head
        self._has_usage = has_usage

        # By choice: characters of the tokens whose log probabilities were sent.
        self._offsets: defaultdict[int, int] = defaultdict(int)

    def whole(self, generations: Sequence[Generation]) -> object:
        choices = [
            _choice(index, one.text, one.finish_reason, self._logprobs(index, one.logprobs))
            for index, one in enumerate(generations)
        ]
        return {**self._head.fields("text_completion"), "choices": choices, "usage": usage_of(generations)}

    def first_chunk(self, index: int) -> object | None:  # noqa: ARG002  # completions begin with text
        return None

    def chunk(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> object:
        return self._chunk(_choice(index, text, None, self._logprobs(index, logprobs or None)))

    def last_chunk(self, index: int, finish_reason: str) -> object:
        return self._chunk(_choice(index, "", finish_reason))

    def usage_chunk(self, generations: Sequence[Generation]) -> object | None:
        if not self._has_usage:
            return None
        return {**self._head.fields("text_completion"), "choices": [], "usage": usage_of(generations)}

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        """Of a choice's next tokens."""
        if tokens is None:
            return None
        offset = self._offsets[index]
        self._offsets[index] += sum(len(token.token) for token in tokens)
        return completion_logprobs(tokens, offset=offset)

    def _chunk(self, choice: dict[str, object]) -> object:
        chunk = {**self._head.fields("text_completion"), "choices": [choice]}
        if self._has_usage:
            chunk["usage"] = None
        return chunk


async def completions(request: Request, body: CompletionRequest, *, api: str, hooks: Hooks) -> Response:
    """Continues a text or several, streamed or whole."""
    has_usage = includes_usage(body)
    return await answer(
        request,
        body,
        [Prompt(text=item) for item in as_list_of_inputs(body.prompt, param="prompt")],
        api=api,
        hooks=hooks,
        id_prefix="cmpl",
        form=lambda head: _CompletionForm(head, has_usage=has_usage),
        logprobs=body.logprobs,
    )


def _choice(
    index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None
) -> dict[str, object]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
