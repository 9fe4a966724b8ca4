"""`/v1/chat/completions`: conversations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, Field, model_validator

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import TokenLogprob
from flashgen_runtime.server.fields import Body
from flashgen_runtime.server.generation import AnswerHead, Prompt, answer
from flashgen_runtime.server.hooks import Generation, Hooks
from flashgen_runtime.server.openai.json_values import check_json_value
from flashgen_runtime.server.openai.logprobs import MAX_TOP_LOGPROBS, ChatLogprobs, chat_logprobs
from flashgen_runtime.server.sampling import Count, SamplingBody, includes_usage
from flashgen_runtime.server.usage import Usage, usage_of

NO_TEMPLATE_NOTICE = "no chat template; message contents were joined by newlines"


class PredictionPart(Body):
    """A part of a predicted text."""

    type: Literal["text"]
    text: str


class Prediction(Body):
    """What the answer will probably be."""

    type: Literal["content"]
    content: str | list[PredictionPart] = Field(description="The text, whole or in parts.")

    @property
    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionRequest(SamplingBody):
    """A conversation to be continued."""

    messages: list[dict[str, Any]] | str = Field(
        description="The conversation: objects with `role` and `content`; a string is one message of a user."
    )
    max_completion_tokens: Count | None = Field(None, description="The newer name of `max_tokens`; wins over it.")
    logprobs: bool | None = Field(None, description="Report the log probability of every token.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="With `logprobs`: report so many likeliest tokens at each place too."
    )
    prediction: Prediction | None = Field(
        None,
        description="A text that most of the answer will equal, such as the file to be changed: where it is right the "
        "answer comes sooner; it never changes what the answer is.",
    )

    @model_validator(mode="before")
    @classmethod
    def _max_tokens_has_two_names(cls, body: Any) -> Any:
        """Both names get the winner's value, so that bounds which a sub-class sets on one hold for the other."""
        if not isinstance(body, dict) or body.get("max_completion_tokens") is None:
            return body
        return {**body, "max_tokens": body["max_completion_tokens"]}

    @model_validator(mode="after")
    def _messages_are_a_conversation(self) -> "ChatCompletionRequest":
        if isinstance(self.messages, list):
            _check_conversation(self.messages)
        return self

    @model_validator(mode="after")
    def _predictions_are_for_one_choice(self) -> "ChatCompletionRequest":
        if self.prediction is not None and (self.n or 1) > 1:
            raise _invalid("is only allowed when `n` is 1", "prediction")
        return self

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise _invalid("is only allowed when `logprobs` is true", "top_logprobs")
        return self


class ChatMessage(BaseModel):
    """What the model says."""

    role: str = "assistant"
    content: str | None
    refusal: str | None = None


class ChatChoice(BaseModel):
    """One continuation."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str


if TYPE_CHECKING:
    # A project may declare its outputs more loosely, as in `choices: list[dict[str, Any]]`.
    Choices = list[Any]
    AnyUsage = Any
else:
    Choices = list[ChatChoice]
    AnyUsage = Usage


class ChatCompletion(BaseModel):
    """The whole answer."""

    id: str
    object: str = "chat.completion"
    created: int = Field(description="Unix time in seconds.")
    model: str
    system_fingerprint: str | None = None
    choices: Choices
    usage: AnyUsage


class _ChatForm:
    """Writes answers as chat completions and their chunks."""

    def __init__(self, head: AnswerHead, *, has_usage: bool) -> None:
        self._head = head
        self._has_usage = has_usage

    def whole(self, generations: Sequence[Generation]) -> object:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": generation.text, "refusal": None},
                "logprobs": None if generation.logprobs is None else chat_logprobs(generation.logprobs),
                "finish_reason": generation.finish_reason,
            }
            for index, generation in enumerate(generations)
        ]
        return {**self._head.fields("chat.completion"), "choices": choices, "usage": usage_of(generations)}

    def first_chunk(self, index: int) -> object:
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, None)

    def chunk(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> object:
        return self._chunk(index, {"content": text}, None, chat_logprobs(logprobs) if logprobs else None)

    def last_chunk(self, index: int, finish_reason: str) -> object:
        return self._chunk(index, {}, finish_reason)

    def usage_chunk(self, generations: Sequence[Generation]) -> object | None:
        if not self._has_usage:
            return None
        return {**self._head.fields("chat.completion.chunk"), "choices": [], "usage": usage_of(generations)}

    def _chunk(
        self, index: int, delta: dict[str, object], finish_reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> object:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._head.fields("chat.completion.chunk"), "choices": [choice]}
        if self._has_usage:
            chunk["usage"] = None
        return chunk


async def chat_completions(request: Request, body: ChatCompletionRequest, *, api: str, hooks: Hooks) -> Response:
    """Continues a conversation, streamed or whole."""
    has_usage = includes_usage(body)
    return await answer(
        request,
        body,
        [Prompt(messages=_as_list(body.messages))],
        api=api,
        hooks=hooks,
        id_prefix="chatcmpl",
        form=lambda head: _ChatForm(head, has_usage=has_usage),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prediction=body.prediction.text if body.prediction is not None else None,
        notice_without_template=NO_TEMPLATE_NOTICE,
    )


def _as_list(messages: list[dict[str, Any]] | str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def _check_conversation(messages: list[dict[str, Any]]) -> None:
    if not messages:
        raise _invalid("must hold at least one message", "messages")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        check_json_value(message, where)
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise _invalid("must be a string that is not empty", f"{where}.role")
        _check_content(message, f"{where}.content")


def _check_content(message: dict[str, Any], where: str) -> None:
    content = message.get("content")
    if isinstance(content, str):
        return
    if content is None:
        # An assistant that only called tools said nothing.
        if message["role"] != "assistant":
            raise _invalid("is required", where)
    elif isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, f"{where}[{index}]")
    else:
        raise _invalid("must be a string or a list of parts", where)


def _check_part(part: Any, where: str) -> None:
    if not isinstance(part, dict):
        raise _invalid("must be an object", where)
    if part.get("type") != "text":
        raise _invalid("must be `text`; other parts are not supported yet", f"{where}.type")
    if not isinstance(part.get("text"), str):
        raise _invalid("must be a string", f"{where}.text")


def _invalid(rule: str, param: str) -> RequestError:
    return RequestError(f"`{param}` {rule}", kind="invalid_request", param=param)
