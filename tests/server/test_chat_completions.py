"""`/v1/chat/completions` through the application, with fake workers."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from service_under_test import CHAT_MODEL, RecordingHooks

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def events(text: str) -> list[Any]:
    """The JSON of each event before the last, which must be the end mark."""
    frames = text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def stream(client: TestClient, **fields: object) -> list[Any]:
    answer = client.post(PATH, json={"messages": HELLO, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    return events(answer.text)


def test_whole_answer(client: TestClient) -> None:
    """An answer has one choice with the assistant's message, and counts its tokens."""
    answer = client.post(PATH, json={"messages": HELLO, "max_tokens": 7}).json()

    assert answer["object"] == "chat.completion"
    assert answer["model"] == CHAT_MODEL
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hellohe", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_streamed_answer_begins_with_the_role_and_ends_with_the_reason(client: TestClient) -> None:
    """The first chunk has the role, the last an empty delta and the finish reason, and the text lies between."""
    chunks = stream(client, max_tokens=4)

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == "hell"
    assert deltas[-1] == {}
    assert reasons == [None] * (len(chunks) - 1) + ["length"]


def test_all_chunks_share_one_head(client: TestClient) -> None:
    """Id, time, model and fingerprint are the same in every chunk."""
    chunks = stream(client, stream_options={"include_usage": True})

    heads = {tuple(chunk[name] for name in ("id", "created", "model", "system_fingerprint")) for chunk in chunks}
    assert len(heads) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_usage_is_sent_once_and_only_when_asked_for(client: TestClient) -> None:
    """With `include_usage` one more chunk without choices has the counts, and all others have null."""
    without, with_usage = stream(client), stream(client, stream_options={"include_usage": True})

    assert all("usage" not in chunk for chunk in without)
    assert [chunk["usage"] for chunk in with_usage[:-1]] == [None] * (len(with_usage) - 1)
    assert with_usage[-1]["choices"] == []
    assert with_usage[-1]["usage"]["total_tokens"] == 5 + 16


def test_streamed_text_equals_the_whole_one(client: TestClient) -> None:
    """Characters outside ASCII arrive undamaged, streamed or not."""
    messages = [{"role": "user", "content": "żółw 🐢\n\n"}]

    whole = client.post(PATH, json={"messages": messages, "max_tokens": 20}).json()
    chunks = stream(client, messages=messages, max_tokens=20)

    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"] == ("żółw 🐢\n\n" * 3)[:20]


def test_stop_strings_end_the_text_and_are_not_part_of_it(client: TestClient) -> None:
    """A stop string, alone or in a list, ends the text before it."""
    one = client.post(PATH, json={"messages": HELLO, "stop": "lo"}).json()["choices"][0]
    several = stream(client, stop=["xyz", "lo"])

    assert (one["message"]["content"], one["finish_reason"]) == ("hel", "stop")
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in several) == "hel"
    assert several[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ("ab", "abab"),
        ([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "a\nba"),
        ([{"role": "developer", "content": "a", "name": "x"}], "aaaa"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "a\nba"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": None}], "q\nq\n"),
        ([{"role": "user", "content": ""}, {"role": "critic", "content": "x"}], "\nx\nx"),
    ],
)
def test_messages_take_every_form(client: TestClient, messages: object, text: str) -> None:
    """A string is one user message; contents are strings, lists of text parts, or null for an assistant."""
    answer = client.post(PATH, json={"messages": messages, "max_tokens": 4})

    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == text


def test_max_completion_tokens_wins(client: TestClient) -> None:
    """The newer name wins over `max_tokens`."""
    answer = client.post(PATH, json={"messages": HELLO, "max_tokens": 9, "max_completion_tokens": 2}).json()

    assert answer["usage"]["completion_tokens"] == 2


def test_neutral_values_and_null_are_accepted(client: TestClient) -> None:
    """Fields that are not built here may say that they want nothing, and null equals absent."""
    neutral = {
        "n": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logprobs": False,
        "top_logprobs": 0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
    }
    absent = dict.fromkeys(("model", "max_tokens", "temperature", "stop", "seed", "stream", "stream_options", "audio"))

    answer = client.post(PATH, json={"messages": HELLO, **neutral, **absent})

    assert answer.status_code == 200, answer.text
    assert "x-flashgen-ignored" not in answer.headers


def test_harmless_fields_are_accepted(client: TestClient) -> None:
    """What clients send about themselves has no effect and no complaint."""
    harmless = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "reasoning_effort": "low",
        "verbosity": "low",
        "parallel_tool_calls": True,
    }

    answer = client.post(PATH, json={"messages": HELLO, **harmless})

    assert answer.status_code == 200, answer.text
    assert "x-flashgen-ignored" not in answer.headers


@pytest.mark.parametrize(
    ("content", "text"),
    [("hello", "hello"), ([{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}], "hello"), ("", "")],
)
def test_a_prediction_reaches_the_worker(client: TestClient, hooks: RecordingHooks, content: object, text: str) -> None:
    """As one text, whole or in parts; the answer is what it would be without."""
    body = {"messages": HELLO, "max_tokens": 7}

    answer = client.post(PATH, json={**body, "prediction": {"type": "content", "content": content}})

    assert answer.status_code == 200, answer.text
    assert "x-flashgen-ignored" not in answer.headers
    assert answer.json()["choices"] == client.post(PATH, json=body).json()["choices"]
    assert [request.prediction for request in hooks.requests[-2:]] == [text, None]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_unknown_fields_are_named_in_a_header(client: TestClient, is_streamed: bool) -> None:
    """Fields that nobody knows are accepted and listed; hostile names are not repeated."""
    body = {"messages": HELLO, "stream": is_streamed, "guided_json": {}, "bad\r\nname: x": 1}

    answer = client.post(PATH, json=body)

    assert answer.status_code == 200
    assert answer.headers["x-flashgen-ignored"] == "guided_json, ?"


def test_missing_chat_template_is_said_in_a_header(client: TestClient) -> None:
    """Whoever talks to a base model learns that messages are merely joined."""
    answer = client.post(PATH, json={"messages": HELLO})

    assert answer.headers["x-flashgen-notice"].startswith("no chat template")


def test_aliases_name_the_model(client: TestClient) -> None:
    """A model answers to its id and its aliases, and signs with its id."""
    for name in (CHAT_MODEL, "chat", "default"):
        assert client.post(PATH, json={"messages": HELLO, "model": name}).json()["model"] == CHAT_MODEL


def test_parameters_reach_the_worker_as_the_caller_wrote_them(client: TestClient, hooks: RecordingHooks) -> None:
    """What the caller does not say stays unsaid, so that the worker's own defaults hold."""
    fields = {
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.5,
        "presence_penalty": -1.0,
        "frequency_penalty": 0.5,
        "logit_bias": {"5": -100.0},
        "n": 2,
        "length_penalty": 0.0,
    }
    client.post(PATH, json={"messages": HELLO, "temperature": 0, "top_k": 5, "seed": -3, "stop": "x", **fields})
    said = hooks.requests[-1].params
    client.post(PATH, json={"messages": HELLO})
    unsaid = hooks.requests[-1].params

    assert (said.temperature, said.top_k, said.seed, said.stop, said.top_p) == (0, 5, -3, ("x",), None)
    assert {name: getattr(said, name) for name in fields} == fields
    assert all(getattr(unsaid, name) is None for name in unsaid.__struct_fields__)


def test_narrowed_request_keeps_the_protocols_rules(client: TestClient) -> None:
    """A sub-class with bounds and defaults of its own still has the other fields and the checks across fields."""
    default = client.post("/narrow", json={"messages": "ab", "max_tokens": None}).json()
    too_many = client.post("/narrow", json={"messages": "ab", "max_completion_tokens": 33})
    no_stream = client.post("/narrow", json={"messages": "ab", "stream_options": {}})
    unbounded = client.post("/narrow", json={"messages": "ab", "temperature": 9})
    empty = client.post("/narrow", json={"messages": []})

    assert default["usage"]["completion_tokens"] == 5
    assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "max_tokens")
    assert (no_stream.status_code, no_stream.json()["error"]["param"]) == (400, "stream_options")
    assert (unbounded.status_code, unbounded.json()["error"]["param"]) == (400, "temperature")
    assert (empty.status_code, empty.json()["error"]["param"]) == (400, "messages")
