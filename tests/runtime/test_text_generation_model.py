"""Text generation as a served model: prompts, conversations, limits and parameters, over a fake engine."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashgen_runtime.engine.base import EngineOutput, EngineRequest
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import (
    EmbedRequest,
    GenerateRequest,
    GenerationParams,
    ModelStatus,
    TextDelta,
    TokenLogprob,
)
from flashgen_runtime.models.text_generation import ChatTemplate, Conversation, TextGenerationModel
from flashgen_runtime.testing import CharacterTokenizer, FakeEngine
from tests.runtime_models import ByteTokenizer

MAX_CONTEXT = 100


class OneStepEngine:
    """An engine that answers every request in one step with its prompt."""

    max_context = MAX_CONTEXT

    def __init__(self) -> None:
        self.requests: dict[str, EngineRequest] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def add_request(self, request: EngineRequest) -> None:
        self.requests[request.request_id] = request

    def step(self) -> list[EngineOutput]:
        outputs = [
            EngineOutput(request_id, bytes(request.prompt_ids).decode(), "stop", len(request.prompt_ids), 1)
            for request_id, request in self.requests.items()
        ]
        self.requests.clear()
        return outputs

    def abort(self, request_id: str) -> None:
        self.requests.pop(request_id, None)


class MarkingTokenizer(ByteTokenizer):
    """Marks with "^" where it was asked for special tokens."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list((("^" if add_special_tokens else "") + text).encode())


class RoleTemplate:
    """Writes "role:content;" for each message."""

    def render(self, messages: Conversation) -> str:
        return "".join(f"{message['role']}:{message['content']};" for message in messages)


def model_of(
    *sources: GenerationParams, chat_template: ChatTemplate | None = None, tokenizer: Any = None
) -> TextGenerationModel:
    return TextGenerationModel(
        ModelStatus(id="m"),
        engine=OneStepEngine(),
        tokenizer=tokenizer or MarkingTokenizer(),
        chat_template=chat_template,
        sources=sources,
    )


def request_of(**fields: Any) -> GenerateRequest:
    return GenerateRequest(request_id="r", model="m", **fields)


def prompt_text(model: TextGenerationModel, **fields: Any) -> str:
    return bytes(model.prepare(request_of(**fields)).prompt_ids).decode()


def refusal(action: Callable[[], Any]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        action()
    return caught.value


def test_text_and_ids() -> None:
    """A prompt is text, which gets the special tokens of the model, or ids, which are taken as they are."""
    assert prompt_text(model_of(), prompt="hi") == "^hi"
    assert prompt_text(model_of(), prompt=[104, 105]) == "hi"


def test_conversation_with_and_without_template() -> None:
    """A template writes its special tokens itself; without one the contents are joined by newlines."""
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]

    assert prompt_text(model_of(chat_template=RoleTemplate()), messages=messages) == "system:be brief;user:hi;"
    assert prompt_text(model_of(), messages=messages) == "^be brief\nhi"


def test_content_in_parts() -> None:
    """Text parts count as one string; an assistant's message may have no content."""
    messages = [
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]

    assert prompt_text(model_of(chat_template=RoleTemplate()), messages=messages) == "assistant:;user:a\nb;"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"content": "no role"}],
        [{"role": 1, "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        [{"role": "user", "content": ["text"]}],
        ["text"],
    ],
)
def test_bad_messages_name_the_field(messages: Any) -> None:
    """What is no conversation of texts is the caller's mistake in `messages`."""
    error = refusal(lambda: model_of(chat_template=RoleTemplate()).prepare(request_of(messages=messages)))

    assert (error.kind, error.param) == ("invalid_request", "messages")


@pytest.mark.parametrize("prompt", ["", [], [256], [-1]])
def test_bad_prompts_name_the_field(prompt: Any) -> None:
    """An empty prompt and ids that the model does not know."""
    error = refusal(lambda: model_of(tokenizer=ByteTokenizer()).prepare(request_of(prompt=prompt)))

    assert (error.kind, error.param) == ("invalid_request", "prompt")


def test_prompt_beyond_the_context() -> None:
    """A prompt that leaves no room is refused with the counts; one token of room is enough."""
    error = refusal(lambda: model_of().prepare(request_of(prompt=[65] * MAX_CONTEXT)))

    assert (error.kind, error.param) == ("context_length", "prompt")
    assert "100 tokens" in error.message
    assert model_of().prepare(request_of(prompt=[65] * 99)).params.max_tokens == 1


def test_max_tokens_beyond_the_context() -> None:
    """What the caller asks for is never cut silently; a default is."""
    wish = GenerationParams(max_tokens=91)
    error = refusal(lambda: model_of().prepare(request_of(prompt=[65] * 10, params=wish)))

    assert (error.kind, error.param) == ("context_length", "prompt")
    assert "10 tokens and `max_tokens` is 91" in error.message
    assert model_of(wish).prepare(request_of(prompt=[65] * 10)).params.max_tokens == 90


def test_sources_of_parameters_in_order() -> None:
    """The checkpoint's parameters, then the spec's, then the request's; the later wins, field by field."""
    checkpoint = GenerationParams(temperature=0.1, top_p=0.2, top_k=3)
    spec = GenerationParams(top_p=0.5, top_k=5, stop=("END",))

    prepared = model_of(checkpoint, spec).prepare(request_of(prompt="a", params=GenerationParams(top_k=7, seed=1)))

    assert prepared.params == SamplingParams(max_tokens=98, temperature=0.1, top_p=0.5, top_k=7, stop=("END",), seed=1)


def test_parameter_out_of_range_names_the_field() -> None:
    """A value outside of its range is the caller's mistake."""
    error = refusal(lambda: model_of().prepare(request_of(prompt="a", params=GenerationParams(temperature=3))))

    assert (error.kind, error.param) == ("invalid_request", "temperature")


def test_a_biased_token_must_be_the_models() -> None:
    """Ids beyond the vocabulary are the caller's mistake."""
    params = GenerationParams(logit_bias={"256": 1.0})

    error = refusal(lambda: model_of().prepare(request_of(prompt="a", params=params)))

    assert (error.kind, error.param) == ("invalid_request", "logit_bias")


def test_log_probabilities_are_the_requests_wish() -> None:
    """No other source of parameters asks for them."""
    assert model_of().prepare(request_of(prompt="a", logprobs=3)).params.logprobs == 3
    assert model_of().prepare(request_of(prompt="a")).params.logprobs is None
    assert refusal(lambda: model_of().prepare(request_of(prompt="a", logprobs=21))).param == "logprobs"


def test_embeddings_are_refused() -> None:
    """A model that writes text gives no vectors."""
    error = refusal(lambda: model_of().prepare(EmbedRequest(request_id="r", model="m", inputs=["a"])))

    assert (error.kind, error.param) == ("invalid_request", "model")


def test_outputs_become_deltas() -> None:
    """What the engine gives is passed on with its counts; an aborted request gives nothing."""
    model = model_of()
    model.add(model.prepare(request_of(prompt="hi")))
    model.add(model.prepare(GenerateRequest(request_id="gone", model="m", prompt="x")))
    model.abort("gone")

    assert model.has_work
    assert model.step() == [
        TextDelta(request_id="r", text="^hi", finish_reason="stop", prompt_tokens=3, completion_tokens=1)
    ]
    assert not model.has_work


def test_choices_and_log_probabilities_are_passed_on() -> None:
    """A delta says which choice it is of, how many are open, and what its tokens' log probabilities are."""
    model = TextGenerationModel(ModelStatus(id="m"), engine=FakeEngine(), tokenizer=CharacterTokenizer())
    params = GenerationParams(n=2, max_tokens=1)
    model.add(model.prepare(request_of(prompt="ab", params=params, logprobs=0)))

    replies = model.step()

    assert replies == [
        delta_of("a", index=0, open_choices=1, logprobs=[TokenLogprob("a", 97, -0.5)]),
        delta_of("b", index=1, open_choices=0, logprobs=[TokenLogprob("b", 98, -0.5)]),
    ]


class HalfBytes(CharacterTokenizer):
    """Knows that every token is the first byte of a character of two."""

    def token_bytes(self, token_id: int) -> bytes | None:
        return b" " if token_id == 97 else b"\xc3"


def test_log_probabilities_spell_tokens_as_in_a_text() -> None:
    """Not as they decode alone: with their space, and with the bytes of what is no whole character."""
    model = TextGenerationModel(ModelStatus(id="m"), engine=FakeEngine(), tokenizer=HalfBytes())
    model.add(model.prepare(request_of(prompt="ab", params=GenerationParams(max_tokens=2), logprobs=1)))

    (space,), (half,) = model.step(), model.step()

    assert isinstance(space, TextDelta)
    assert isinstance(half, TextDelta)
    assert space.logprobs == [TokenLogprob(" ", 97, -0.5, [(" ", 97, -0.5)])]
    assert half.logprobs == [TokenLogprob("\ufffd", 98, -0.5, [("\ufffd", 98, -0.5)], b"\xc3")]


def delta_of(text: str, **fields: Any) -> TextDelta:
    return TextDelta(request_id="r", text=text, finish_reason="length", prompt_tokens=2, completion_tokens=1, **fields)


def test_module_is_free_of_torch() -> None:
    """Fakes build on this module in processes that have no torch."""
    code = "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['jinja2'] = None\n"
    code += "import flashgen_runtime.models.text_generation, flashgen_runtime.models.embeddings, "
    code += "flashgen_runtime.engine.scheduler, flashgen_runtime.engine.stop_strings"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2] / "runtime_lib")
