"""Whatever a caller sends is answered with a 4xx that says what is wrong, in OpenAI's shape."""

import gzip
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashgen_runtime.server.request_body import MAX_BODY_BYTES

CHAT, COMPLETIONS, EMBEDDINGS, GENERATE = "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/generate/"
MINIMAL: dict[str, dict[str, Any]] = {
    CHAT: {"messages": "hi"},
    COMPLETIONS: {"prompt": "hi"},
    EMBEDDINGS: {"input": "hi"},
    GENERATE: {"prompt": "hi"},
}
USER = {"role": "user", "content": "hi"}


def error_of(answer: Any) -> dict[str, Any]:
    """The error's details, whose shape is checked."""
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", True),
        ("max_tokens", "5"),
        ("max_tokens", 1.5),
        ("max_tokens", 2**40),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", 0),
        ("top_k", 2**70),
        ("seed", 2**63),
        ("seed", 0.5),
        ("stop", 5),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", [""]),
        ("stop", [None]),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("n", 0),
        ("n", 129),
        ("n", True),
        ("n", 10**30),
        ("best_of", 3),
        ("frequency_penalty", 2.1),
        ("presence_penalty", -3),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"one": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": "5"}),
        ("logit_bias", {str(0x110000): 1}),
        ("logit_bias", dict.fromkeys(map(str, range(301)), 0)),
        ("logit_bias", [1]),
        ("logprobs", "yes"),
        ("logprobs", 21),
        ("top_logprobs", 3),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("suffix", "x"),
        ("echo", True),
        ("modalities", ["audio"]),
        ("audio", {}),
        ("min_p", 1),
        ("typical_p", 0),
        ("repetition_penalty", 0),
        ("repetition_penalty", 10.1),
        ("num_beams", 17),
        ("num_beams", 2.0),
        ("length_penalty", 6),
        ("model", 5),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, GENERATE])
def test_bad_field_is_400_and_named(client: TestClient, path: str, field: str, value: object) -> None:
    """Wrong types, values out of range and what is not built: the answer names the field."""
    answer = client.post(path, json={**MINIMAL[path], field: value})

    assert answer.status_code == 400, answer.text
    assert error_of(answer)["param"] == field


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": None}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": 5}, "messages"),
        (CHAT, {"messages": ["hi"]}, "messages"),
        (CHAT, {"messages": [{"content": "hi"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": 1, "content": "hi"}]}, "messages[0].role"),
        (CHAT, {"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (CHAT, {"messages": [{**USER, "content": "\ud800"}]}, "messages[0].content"),
        (CHAT, {"messages": [{**USER, "extra": 2**70}]}, "messages[0].extra"),
        (CHAT, {"messages": "hi", "max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"messages": "hi", "logprobs": 0}, "logprobs"),
        (CHAT, {"messages": "hi", "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"messages": "hi", "logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        (CHAT, {"messages": "hi", "prediction": "text"}, "prediction"),
        (CHAT, {"messages": "hi", "prediction": {"content": "text"}}, "prediction.type"),
        (CHAT, {"messages": "hi", "prediction": {"type": "content"}}, "prediction.content"),
        (CHAT, {"messages": "hi", "prediction": {"type": "text", "content": "text"}}, "prediction.type"),
        (CHAT, {"messages": "hi", "prediction": {"type": "content", "content": 5}}, "prediction"),
        (CHAT, {"messages": "hi", "prediction": {"type": "content", "content": [{"type": "text"}]}}, "prediction"),
        (CHAT, {"messages": "hi", "prediction": {"type": "content", "content": "text"}, "n": 2}, "prediction"),
        (CHAT, {"messages": "hi", "num_beams": 2, "n": 3}, "n"),
        (CHAT, {"messages": "hi", "num_beams": 2, "temperature": 0.7}, "temperature"),
        (COMPLETIONS, {"prompt": "hi", "logprobs": True}, "logprobs"),
        (COMPLETIONS, {"prompt": "hi", "logprobs": 1, "echo": True}, "echo"),
        (GENERATE, {"prompt": "hi", "logprobs": 1}, "logprobs"),
        (GENERATE, {"prompt": "hi", "n": 2}, "n"),
        (
            CHAT,
            {"messages": "hi", "stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
        ),
        (CHAT, {"messages": "hi", "stream": True, "stream_options": 5}, "stream_options"),
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": ""}, "prompt"),
        (COMPLETIONS, {"prompt": [[]]}, "prompt"),
        (COMPLETIONS, {"prompt": [1.5]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt"),
        (COMPLETIONS, {"prompt": [2**31 - 1]}, "prompt"),
        (COMPLETIONS, {"prompt": [True]}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 129}, "prompt"),
        (GENERATE, {"prompt": ["a"]}, "prompt"),
        (EMBEDDINGS, {}, "input"),
        (EMBEDDINGS, {"input": ""}, "input"),
        (EMBEDDINGS, {"input": []}, "input"),
        (EMBEDDINGS, {"input": [""]}, "input"),
        (EMBEDDINGS, {"input": [[]]}, "input"),
        (EMBEDDINGS, {"input": [2**40]}, "input"),
        (EMBEDDINGS, {"input": "a", "dimensions": 4}, "dimensions"),
        (EMBEDDINGS, {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        (EMBEDDINGS, {"input": "a", "encoding_format": 5}, "encoding_format"),
    ],
)
def test_bad_content_is_400_and_named(client: TestClient, path: str, body: object, param: str) -> None:
    """What is to be continued or embedded must be there and well-formed."""
    # The client's own encoder refuses surrogates.
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})

    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"5",
        b"[]",
        b'"text"',
        b'{"messages": ',
        b"\xff\xfe",
        b'{"messages": "hi", "temperature": NaN}',
        b'{"messages": "hi", "temperature": Infinity}',
        b'{"messages": "hi", "temperature": 1e999}',
        b'{"messages": "hi", "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x", "a": ' + b"[" * 100 + b"]" * 100 + b"}]}",
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": [{"role": "user", "content": "x", "a": NaN}]}',
    ],
)
def test_bad_json_is_400(client: TestClient, content: bytes) -> None:
    """No JSON, no object, numbers that are none, nesting without end: 400, never 500."""
    answer = client.post(CHAT, content=content, headers={"content-type": "application/json"})

    assert answer.status_code == 400, answer.text
    error_of(answer)


def test_names_that_are_no_text_do_no_harm(client: TestClient) -> None:
    """A field whose name is half a surrogate pair is unknown, like any other."""
    content = b'{"messages": "hi", "\\ud800": 1}'

    answer = client.post(CHAT, content=content, headers={"content-type": "application/json"})

    assert answer.status_code in (200, 400), answer.text


def test_missing_content_type_is_explained(client: TestClient) -> None:
    """`curl -d` without a header sends a form; the answer says which header is needed."""
    answer = client.post(CHAT, content=json.dumps(MINIMAL[CHAT]))

    assert answer.status_code == 400
    assert "content-type: application/json" in error_of(answer)["message"]


def test_prompt_beyond_the_context_is_400_with_its_code(client: TestClient) -> None:
    """A prompt that leaves no room has OpenAI's code, and the field's name."""
    chat = error_of(client.post(CHAT, json={"messages": "x" * 300}))
    completion = error_of(client.post(COMPLETIONS, json={"prompt": "x" * 300, "stream": True}))

    assert (chat["code"], chat["param"]) == ("context_length_exceeded", "messages")
    assert (completion["code"], completion["param"]) == ("context_length_exceeded", "prompt")


def test_unknown_model_is_404(client: TestClient) -> None:
    """A wrong name is never answered by some other model; the answer lists those that exist."""
    answer = client.post(CHAT, json={"messages": "hi", "model": "gpt-4"})

    assert answer.status_code == 404
    error = error_of(answer)
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "not_found_error")
    assert "acme/chat-7b" in error["message"]


def test_unknown_path_and_method_have_the_same_shape(client: TestClient) -> None:
    """404 and 405 come from the framework, and look like all other errors."""
    nowhere, not_allowed = client.get("/v1/nothing"), client.get(CHAT)

    assert (nowhere.status_code, error_of(nowhere)["type"]) == (404, "not_found_error")
    assert (not_allowed.status_code, not_allowed.headers["allow"]) == (405, "POST")
    error_of(not_allowed)


def test_large_body_is_413(client: TestClient) -> None:
    """A body above the limit is refused by its announced length, by what arrives, and by what it unpacks to."""
    large = json.dumps({"messages": "x" * MAX_BODY_BYTES}).encode()
    json_type = {"content-type": "application/json"}

    announced = client.post(CHAT, content=large, headers=json_type)
    counted = client.post(CHAT, content=iter([large[:1000], large[1000:]]), headers=json_type)
    packed = client.post(CHAT, content=gzip.compress(large, 1), headers={**json_type, "content-encoding": "gzip"})

    for answer in (announced, counted, packed):
        assert answer.status_code == 413, answer.text
        error_of(answer)


def test_gzip_body_is_read(client: TestClient) -> None:
    """A packed body is unpacked; one that is damaged, cut or packed in another way is refused."""
    packed = gzip.compress(json.dumps(MINIMAL[CHAT]).encode())
    gzip_type = {"content-type": "application/json", "content-encoding": "gzip"}

    assert client.post(CHAT, content=packed, headers=gzip_type).status_code == 200
    assert client.post(CHAT, content=packed[:-4], headers=gzip_type).status_code == 400
    assert client.post(CHAT, content=b"no gzip", headers=gzip_type).status_code == 400
    assert client.post(CHAT, content=packed, headers={**gzip_type, "content-encoding": "br"}).status_code == 415


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
# Fields of all kinds: taken, refused, harmless.
FIELDS = st.sampled_from(
    [
        *("messages", "prompt", "input", "model", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
        *("top_k", "stop", "seed", "stream", "stream_options", "n", "tools", "logprobs", "encoding_format", "user"),
        *("top_logprobs", "logit_bias", "min_p", "presence_penalty", "num_beams", "length_penalty"),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(list(MINIMAL)), body=st.dictionaries(FIELDS | st.text(max_size=8), JSON, max_size=5))
def test_random_bodies_never_cause_a_failure(client: TestClient, path: str, body: dict[str, Any]) -> None:
    """Random JSON beside a valid request, or in its place, is answered or refused, and never fails."""
    for sent in (body, {**MINIMAL[path], "max_tokens": 1, **body}):
        answer = client.post(path, content=json.dumps(sent), headers={"content-type": "application/json"})

        assert answer.status_code < 500, answer.text
        if answer.status_code != 200:
            error_of(answer)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(st.dictionaries(st.sampled_from(["role", "content", "name"]) | st.text(), JSON), max_size=3))
def test_random_messages_never_cause_a_failure(client: TestClient, messages: list[Any]) -> None:
    """Random conversations neither."""
    sent = json.dumps({"messages": messages, "max_tokens": 1})
    answer = client.post(CHAT, content=sent, headers={"content-type": "application/json"})

    assert answer.status_code < 500, answer.text
