"""Text generation behind the interface of a served model: encodes requests, passes them to an engine. Free of torch.

The engine does everything that has to do with tokens of several requests; rendering a conversation is the chat
template's part (`models.chat_template`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flashgen_runtime.engine.base import Engine, EngineOutput, EngineRequest, ReportsStats
from flashgen_runtime.engine.sampling_params import SamplingParams, check_vocab, merge_params
from flashgen_runtime.engine.tokenizer import REPLACEMENT, Tokenizer
from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import (
    GenerateRequest,
    GenerationParams,
    ModelStatus,
    Reply,
    TextDelta,
    TokenLogprob,
    WorkRequest,
)
from flashgen_runtime.models.engine_gauges import EngineGauges

Conversation = list[dict[str, Any]]


class ChatTemplate(Protocol):
    """Turns a conversation into the text that the model continues."""

    def render(self, messages: Conversation) -> str:
        """The text, special tokens written out; every `content` is a string. Raises `RequestError`."""


@runtime_checkable
class KnowsTokenBytes(Protocol):
    """What a tokenizer may have besides."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """A token's part of a text; `None` where the vocabulary does not tell."""


class EncodedPrompt(NamedTuple):
    """A prompt as token ids, and the request's field that it came from."""

    ids: list[int]
    param: str


class TextGenerationModel:
    """A `ServedModel` that continues texts and conversations.

    Args:
        status: what callers may know about the model.
        engine: runs the requests.
        tokenizer: encodes prompts; `prepare` calls it from another thread than the engine's.
        chat_template: renders conversations; without one, contents are joined by newlines.
        sources: decoding parameters below the request's own: the checkpoint's, then the spec's.
    """

    def __init__(
        self,
        status: ModelStatus,
        *,
        engine: Engine,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None = None,
        sources: Sequence[GenerationParams] = (),
    ) -> None:
        self._status = status
        self._engine = engine
        self._tokenizer = tokenizer
        self._spelling = tokenizer if isinstance(tokenizer, KnowsTokenBytes) else None
        self._chat_template = chat_template
        self._sources = tuple(sources)
        self._reporting_engine = engine if isinstance(engine, ReportsStats) else None
        self._gauges = EngineGauges(status.id)
        self._show_stats()

    @property
    def status(self) -> ModelStatus:
        return self._status

    @property
    def has_work(self) -> bool:
        return self._engine.has_work

    @property
    def seconds_until_work(self) -> float | None:
        return None

    def prepare(self, request: WorkRequest) -> EngineRequest:
        if not isinstance(request, GenerateRequest):
            message = f"the model `{request.model}` generates text, it gives no embeddings"
            raise RequestError(message, kind="invalid_request", param="model")
        prompt = self._encode(request)
        params = self._params(request, prompt=prompt)
        predicted = self._tokenizer.encode(request.prediction, add_special_tokens=False) if request.prediction else []
        return EngineRequest(request.request_id, prompt.ids, params, predicted_ids=predicted)

    def add(self, prepared: EngineRequest) -> None:
        self._engine.add_request(prepared)

    def step(self) -> list[Reply]:
        outputs = self._engine.step()
        self._show_stats()
        return [self._reply(output) for output in outputs]

    def abort(self, request_id: str) -> None:
        self._engine.abort(request_id)
        self._show_stats()

    def close(self) -> None:
        self._engine.close()

    def _reply(self, output: EngineOutput) -> TextDelta:
        return TextDelta(
            request_id=output.request_id,
            text=output.text,
            finish_reason=output.finish_reason,
            prompt_tokens=output.prompt_tokens,
            completion_tokens=output.completion_tokens,
            cached_tokens=output.cached_tokens,
            index=output.index,
            open_choices=output.open_choices,
            logprobs=[self._spelled(token) for token in output.logprobs],
        )

    def _spelled(self, token: TokenLogprob) -> TokenLogprob:
        """The same with what each token stands for in any text, which decoding it alone does not tell."""
        if self._spelling is None:
            return token
        token_bytes = self._spelling.token_bytes(token.token_id)
        text = _text_of_token(token_bytes, token.token)
        return TokenLogprob(
            text,
            token.token_id,
            token.logprob,
            [
                (_text_of_token(self._spelling.token_bytes(token_id), alone), token_id, logprob)
                for alone, token_id, logprob in token.top
            ],
            token_bytes if REPLACEMENT in text else None,
        )

    def _show_stats(self) -> None:
        if self._reporting_engine is not None:
            self._gauges.show(self._reporting_engine.stats)

    def _encode(self, request: GenerateRequest) -> EncodedPrompt:
        """The request's prompt as token ids, at least one."""
        if request.messages is not None:
            prompt = EncodedPrompt(self._encode_chat(request.messages), "messages")
        elif isinstance(request.prompt, str):
            prompt = EncodedPrompt(self._tokenizer.encode(request.prompt, add_special_tokens=True), "prompt")
        else:
            prompt = EncodedPrompt(request.prompt or [], "prompt")
        self._check(prompt)
        return prompt

    def _encode_chat(self, messages: Conversation) -> list[int]:
        plain = [_with_plain_content(message) for message in messages]
        if not plain:
            raise _bad_messages("is empty")
        if self._chat_template is None:
            text = "\n".join(message["content"] for message in plain)
            return self._tokenizer.encode(text, add_special_tokens=True)
        return self._tokenizer.encode(self._chat_template.render(plain), add_special_tokens=False)

    def _check(self, prompt: EncodedPrompt) -> None:
        """Raises unless there are token ids and the model knows them all."""
        if not prompt.ids:
            raise RequestError(f"`{prompt.param}` is empty", kind="invalid_request", param=prompt.param)
        vocab_size = self._tokenizer.vocab_size
        smallest, largest = min(prompt.ids), max(prompt.ids)
        if smallest < 0 or largest >= vocab_size:
            unknown = smallest if smallest < 0 else largest
            message = f"`{prompt.param}` holds the token id {unknown}; the model's go from 0 to {vocab_size - 1}"
            raise RequestError(message, kind="invalid_request", param=prompt.param)

    def _params(self, request: GenerateRequest, *, prompt: EncodedPrompt) -> SamplingParams:
        """Complete parameters; a default of `max_tokens` gives way to the prompt, the caller's own wish does not."""
        requested = request.params
        max_context = self._engine.max_context
        room = max_context - len(prompt.ids)
        if room < 1:
            message = (
                f"the prompt has {len(prompt.ids)} tokens, which leaves no room for a completion in the model's "
                f"context of {max_context} tokens"
            )
            raise RequestError(message, kind="context_length", param=prompt.param)
        if requested.max_tokens is not None and requested.max_tokens > room:
            message = (
                f"the prompt has {len(prompt.ids)} tokens and `max_tokens` is {requested.max_tokens}, together more "
                f"than the model's context of {max_context} tokens"
            )
            raise RequestError(message, kind="context_length", param=prompt.param)
        defaults = (_capped(source, room=room) for source in self._sources)
        params = merge_params(*defaults, requested, room=room, logprobs=request.logprobs)
        check_vocab(params, self._tokenizer.vocab_size)
        return params


def _capped(source: GenerationParams, *, room: int) -> GenerationParams:
    """The same parameters with `max_tokens` no larger than `room`."""
    if source.max_tokens is None or source.max_tokens <= room:
        return source
    fields = {name: getattr(source, name) for name in source.__struct_fields__}
    return GenerationParams(**{**fields, "max_tokens": room})


def _with_plain_content(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its content as one string: text parts are joined by newlines."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _bad_messages("must hold objects with a `role` and a `content`")
    content = message.get("content")
    if content is None and message["role"] == "assistant":
        content = ""
    if isinstance(content, list):
        content = "\n".join(_text_of(part) for part in content)
    if not isinstance(content, str):
        raise _bad_messages("holds a `content` that is neither a string nor a list of text parts")
    return {**message, "content": content}


def _text_of(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise _bad_messages(f"holds a part of type {kind!r}; this model takes text only")


def _bad_messages(problem: str) -> RequestError:
    return RequestError(f"`messages` {problem}", kind="invalid_request", param="messages")


def _text_of_token(token_bytes: bytes | None, alone: str) -> str:
    """The token's text by its bytes, else as it decodes alone."""
    return alone if token_bytes is None else token_bytes.decode(errors="replace")
