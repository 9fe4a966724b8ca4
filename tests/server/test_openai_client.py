"""The real `openai` client against a real server on a loopback port, with nothing changed but `base_url`."""

import struct
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from api_process import api_process
from openai import OpenAI
from service_under_test import CHAT_MODEL, EMBED_MODEL

from flashgen_runtime.testing import fake_vector

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("served")
    with api_process(folder) as running:
        yield running.url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as connected:
        yield connected


def test_chat(client: OpenAI) -> None:
    """A whole answer is parsed into the client's types."""
    answer = client.chat.completions.create(model=CHAT_MODEL, messages=HELLO, max_tokens=7, user="u", seed=1)

    assert answer.choices[0].message.content == "hellohe"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12
    assert answer.usage.prompt_tokens_details is not None


def test_streamed_chat(client: OpenAI) -> None:
    """A stream gives the text in pieces, then the counts, and ends by itself."""
    with client.chat.completions.create(
        model="default", messages=HELLO, max_completion_tokens=8, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "hellohel"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_prediction(client: OpenAI) -> None:
    """The client's own field, as it sends it; the answer is what it would be without."""
    answer = client.chat.completions.create(
        model=CHAT_MODEL, messages=HELLO, max_tokens=3, prediction={"type": "content", "content": "hell"}
    )

    assert answer.choices[0].message.content == "hel"


def test_streaming_helper(client: OpenAI) -> None:
    """The client's own accumulation of a stream gives the same message."""
    with client.chat.completions.stream(model=CHAT_MODEL, messages=HELLO, stop="lo") as stream:
        answer = stream.get_final_completion()

    assert answer.choices[0].message.content == "hel"
    assert answer.choices[0].message.role == "assistant"


def test_completions(client: OpenAI) -> None:
    """Text completions, whole for several prompts and streamed for one."""
    whole = client.completions.create(model=CHAT_MODEL, prompt=["ab", "cd"], max_tokens=3)
    with client.completions.create(model=CHAT_MODEL, prompt="ab", max_tokens=3, stream=True) as stream:
        streamed = "".join(chunk.choices[0].text for chunk in stream)

    assert [choice.text for choice in whole.choices] == ["aba", "cdc"]
    assert streamed == "aba"


def test_choices_with_log_probabilities(client: OpenAI) -> None:
    """Several choices, each with what the client's types say of its tokens."""
    answer = client.chat.completions.create(
        model=CHAT_MODEL, messages=HELLO, max_tokens=3, n=2, logprobs=True, top_logprobs=2, presence_penalty=0.5
    )

    assert [choice.message.content for choice in answer.choices] == ["hel", "ell"]
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.token for token in logprobs.content] == ["e", "l", "l"]
    assert [(top.token, top.logprob, top.bytes) for top in logprobs.content[0].top_logprobs] == [
        ("e", -0.5, [101]),
        ("l", -1.5, [108]),
    ]


def test_streamed_choices_with_log_probabilities(client: OpenAI) -> None:
    """The client's own accumulation of interleaved chunks gives the choices of the whole answer."""
    with client.chat.completions.stream(
        model=CHAT_MODEL, messages=HELLO, stop="lo", n=2, logprobs=True, logit_bias={"104": -1}
    ) as stream:
        answer = stream.get_final_completion()

    assert [choice.message.content for choice in answer.choices] == ["hel", "el"]
    content = [choice.logprobs.content for choice in answer.choices if choice.logprobs is not None]
    assert ["".join(token.token for token in tokens or []) for tokens in content] == ["hello", "ello"]


def test_log_probabilities_of_completions(client: OpenAI) -> None:
    """The older shape: parallel lists, offsets in characters."""
    whole = client.completions.create(model=CHAT_MODEL, prompt="ab", max_tokens=3, logprobs=1, n=2)

    logprobs = whole.choices[1].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == (["b", "a", "b"], [0, 1, 2])
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.top_logprobs == [{"b": -0.5}, {"a": -0.5}, {"b": -0.5}]


def test_embeddings_in_the_clients_default_form_and_as_numbers(client: OpenAI) -> None:
    """The client asks for base64 unless told otherwise; both give the same vectors."""
    default = client.embeddings.create(model=EMBED_MODEL, input=["ab", "c"])
    numbers = client.embeddings.create(model=EMBED_MODEL, input="ab", encoding_format="float")

    assert default.data[0].embedding == pytest.approx(fake_vector("ab"), abs=1e-6)
    assert [item.index for item in default.data] == [0, 1]
    # Both are the same 32-bit numbers.
    assert struct.pack("<8f", *default.data[0].embedding) == struct.pack("<8f", *numbers.data[0].embedding)
    assert default.usage.prompt_tokens == 3


def test_models(client: OpenAI) -> None:
    """Models are listed, and found by an id with slashes."""
    assert [model.id for model in client.models.list()] == [CHAT_MODEL, EMBED_MODEL]
    assert client.models.retrieve(CHAT_MODEL).id == CHAT_MODEL


def test_unknown_model_raises_not_found(client: OpenAI) -> None:
    """The client's class for 404 has our code, field and request id."""
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt-4", messages=HELLO)

    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert raised.value.request_id


def test_bad_field_raises_bad_request(client: OpenAI) -> None:
    """The client's class for 400 has the field's name."""
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=CHAT_MODEL, messages=HELLO, n=0)

    assert raised.value.param == "n"


def test_too_long_prompt_raises_bad_request_in_a_stream_too(client: OpenAI) -> None:
    """A refusal before the first token is an HTTP error, so `create` itself raises."""
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=CHAT_MODEL, messages=[{"role": "user", "content": "x" * 300}], stream=True)

    assert raised.value.code == "context_length_exceeded"


def test_unknown_fields_are_named_to_the_client(client: OpenAI) -> None:
    """Fields of `extra_body` that have no effect are listed in a header."""
    raw = client.chat.completions.with_raw_response.create(
        model=CHAT_MODEL, messages=HELLO, extra_body={"top_k": 3, "guided_json": {}}
    )

    assert raw.headers["x-flashgen-ignored"] == "guided_json"
