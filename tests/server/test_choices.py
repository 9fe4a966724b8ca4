"""Several choices of one request, and the log probabilities of their tokens, through the application."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from service_under_test import CONFIG, RecordingHooks, application

from flashgen_runtime.messages import TokenLogprob
from flashgen_runtime.server.openai.logprobs import chat_logprobs, completion_logprobs
from flashgen_runtime.testing import fake_service

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def events(text: str) -> list[Any]:
    """The JSON of each event before the end mark."""
    return [json.loads(frame.removeprefix("data: ")) for frame in text.split("\n\n")[:-2]]


def test_choices_are_numbered_and_share_the_prompt(client: TestClient) -> None:
    """The prompt's tokens count once, those of all choices together."""
    answer = client.post(CHAT, json={"messages": "abc", "max_tokens": 4, "n": 3}).json()

    texts = [(choice["index"], choice["message"]["content"]) for choice in answer["choices"]]
    assert texts == [(0, "abca"), (1, "bcab"), (2, "cabc")]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 12)


def test_every_choice_has_its_own_end(client: TestClient) -> None:
    """A choice that stops early leaves the others open."""
    answer = client.post(CHAT, json={"messages": "abc", "max_tokens": 2, "n": 2, "stop": "c"}).json()

    ends = [(choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]]
    assert ends == [("ab", "length"), ("b", "stop")]


def test_streamed_choices_interleave(client: TestClient) -> None:
    """Each begins with its role and ends with its reason; usage comes once, at the end."""
    body = {"messages": "abc", "max_tokens": 3, "n": 2, "stream": True, "stream_options": {"include_usage": True}}

    *chunks, usage = events(client.post(CHAT, json=body).text)

    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["index"] for choice in choices[:4]] == [0, 0, 1, 1]
    for index, text in enumerate(["abc", "bca"]):
        mine = [choice for choice in choices if choice["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in mine) == text
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["length"]
        assert mine[-1]["delta"] == {}
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (3, 6)


def test_choices_of_several_prompts_follow_each_other(client: TestClient) -> None:
    """The first prompt's choices come first, as at OpenAI; the prompts' tokens add up."""
    body = {"prompt": ["ab", "cde"], "max_tokens": 2, "n": 2}

    answer = client.post(COMPLETIONS, json=body).json()
    chunks = events(client.post(COMPLETIONS, json={**body, "stream": True}).text)

    assert [choice["text"] for choice in answer["choices"]] == ["ab", "ba", "cd", "de"]
    assert answer["usage"]["prompt_tokens"] == 5
    streamed = [choice for chunk in chunks for choice in chunk["choices"]]
    texts = ["".join(choice["text"] for choice in streamed if choice["index"] == index) for index in range(4)]
    assert texts == ["ab", "ba", "cd", "de"]


def test_the_hooks_see_every_choice(client: TestClient, hooks: RecordingHooks) -> None:
    """In their order, after all of them have ended."""
    before = len(hooks.results)

    client.post(CHAT, json={"messages": "ab", "max_tokens": 1, "n": 2, "logprobs": True})

    assert [(result.choice, result.text) for result in hooks.results[before:]] == [(0, "a"), (1, "b")]
    assert hooks.results[-1].logprobs == (TokenLogprob("b", 98, -0.5),)


def test_the_spec_may_say_how_many_choices_there_are(tmp_path: Path) -> None:
    """The number of the spec holds where a request has none, and where an api gives one response it is one."""
    path = tmp_path / "service.yaml"
    path.write_text(CONFIG.replace("generation_params: {}", "generation_params: {n: 2}"))

    with TestClient(application(fake_service(path))) as client:
        default = client.post(COMPLETIONS, json={"prompt": ["ab", "cd"], "max_tokens": 1}).json()
        asked = client.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 1, "n": 1}).json()
        generated = client.post("/generate/", json={"prompt": "ab", "max_tokens": 1}).json()

    assert [choice["text"] for choice in default["choices"]] == ["a", "b", "c", "d"]
    assert len(asked["choices"]) == 1
    assert generated["response"] == "a"


@pytest.mark.parametrize("top", [None, 0, 2])
def test_log_probabilities_of_a_chat(client: TestClient, top: int | None) -> None:
    """One object for each token, with as many alternatives as were asked for."""
    body = {"messages": "abc", "max_tokens": 2, "logprobs": True, "top_logprobs": top}

    logprobs = client.post(CHAT, json=body).json()["choices"][0]["logprobs"]

    likeliest = [
        {"token": "a", "logprob": -0.5, "bytes": [97]},
        {"token": "b", "logprob": -1.5, "bytes": [98]},
    ]
    assert logprobs["refusal"] is None
    assert [token["token"] for token in logprobs["content"]] == ["a", "b"]
    assert logprobs["content"][0] == {**likeliest[0], "top_logprobs": likeliest[: top or 0]}


def test_streamed_log_probabilities_are_those_of_the_whole_answer(client: TestClient) -> None:
    """Also of tokens whose text is held back, because a stop string may begin with it."""
    body = {"messages": "abc", "max_tokens": 4, "logprobs": True, "top_logprobs": 1, "stop": "bcx", "n": 2}

    whole = client.post(CHAT, json=body).json()["choices"]
    chunks = [chunk["choices"][0] for chunk in events(client.post(CHAT, json={**body, "stream": True}).text)]

    for choice in whole:
        mine = [chunk["logprobs"] for chunk in chunks if chunk["index"] == choice["index"] and chunk["logprobs"]]
        assert [token for logprobs in mine for token in logprobs["content"]] == choice["logprobs"]["content"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_log_probabilities_of_a_completion(client: TestClient, is_streamed: bool) -> None:
    """Parallel lists, in one piece or in several; offsets count the choice's characters."""
    body = {"prompt": "abc", "max_tokens": 3, "logprobs": 2, "n": 2, "stream": is_streamed}

    answer = client.post(COMPLETIONS, json=body)

    chunks = events(answer.text) if is_streamed else [answer.json()]
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == 1]
    pieces = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
    joined = {name: [entry for piece in pieces for entry in piece[name]] for name in pieces[0]}
    assert joined == {
        "text_offset": [0, 1, 2],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "tokens": ["b", "c", "a"],
        "top_logprobs": [{"b": -0.5, "c": -1.5}, {"c": -0.5, "a": -1.5}, {"a": -0.5, "b": -1.5}],
    }


def test_without_logprobs_there_are_none(client: TestClient) -> None:
    """Neither in chats nor in completions."""
    chat = client.post(CHAT, json={"messages": "ab", "logprobs": False}).json()
    completion = client.post(COMPLETIONS, json={"prompt": "ab"}).json()

    assert chat["choices"][0]["logprobs"] is None
    assert completion["choices"][0]["logprobs"] is None


def test_tokens_that_are_no_characters_have_their_bytes() -> None:
    """The bytes of all tokens together are the text's; where they are not known there are none."""
    turtle = "🐢".encode()
    halves = [
        TokenLogprob("\ufffd", 1, -1.0, [], turtle[:2]),
        TokenLogprob("\ufffd", 2, -1.0, [("\ufffd", 3, -2.0)], turtle[2:]),
    ]

    content = chat_logprobs(halves)["content"]

    assert bytes(byte for token in content for byte in token["bytes"]).decode() == "🐢"
    assert content[1]["top_logprobs"] == [{"token": "\ufffd", "logprob": -2.0, "bytes": None}]


def test_no_infinity_reaches_json() -> None:
    """A token that was forbidden has a number, and the chosen token is among the likeliest wherever it ranks."""
    tokens = [TokenLogprob("a", 1, float("-inf"), [("b", 2, -0.1), ("c", 3, float("-inf"))])]

    logprobs = completion_logprobs(tokens, offset=4)

    assert logprobs["token_logprobs"] == [-9999.0]
    assert logprobs["top_logprobs"] == [{"b": -0.1, "c": -9999.0, "a": -9999.0}]
    assert logprobs["text_offset"] == [4]
