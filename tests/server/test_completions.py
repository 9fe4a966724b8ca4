"""`/v1/completions` and `/generate/` through the application, with fake workers."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from service_under_test import CHAT_MODEL

from flashgen_runtime.server.generate import _GenerateForm
from flashgen_runtime.server.generation import AnswerHead
from flashgen_runtime.server.hooks import Generation

PATH = "/v1/completions"


def events(text: str) -> list[Any]:
    """The JSON of each event before the last, which must be the end mark."""
    frames = text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["aba"]),
        (["ab", "cd"], ["aba", "cdc"]),
        ([97, 98], ["aba"]),
        ([[97, 98], [99]], ["aba", "ccc"]),
    ],
)
def test_prompts_take_every_form(client: TestClient, prompt: object, texts: list[str]) -> None:
    """Text, ids, or several of either: each prompt gives one choice, in order, and the counts are summed."""
    answer = client.post(PATH, json={"prompt": prompt, "max_tokens": 3}).json()

    assert (answer["object"], answer["model"]) == ("text_completion", CHAT_MODEL)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate(texts))
    assert answer["usage"]["completion_tokens"] == 3 * len(texts)


def test_streamed_prompts_are_told_apart_by_index(client: TestClient) -> None:
    """Chunks of several prompts may interleave; each index gives its own text and finish reason."""
    body = {"prompt": ["ab", "cd", "ef"], "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}

    chunks = events(client.post(PATH, json=body).text)

    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    texts = ["".join(choice["text"] for choice in choices if choice["index"] == index) for index in range(3)]
    assert texts == ["abab", "cdcd", "efef"]
    assert sorted(choice["index"] for choice in choices if choice["finish_reason"]) == [0, 1, 2]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 3 * (2 + 4))


def test_every_prompt_is_its_own_generation_for_the_hooks(client: TestClient, hooks: Any) -> None:
    """The hooks see each prompt and each answer once."""
    before = len(hooks.results)

    client.post(PATH, json={"prompt": ["ab", "cd"], "max_tokens": 2})

    assert sorted(result.text for result in hooks.results[before:]) == ["ab", "cd"]


def test_generate_gives_prompt_and_response(client: TestClient) -> None:
    """`/generate/` answers with the prompt and what follows it, and nothing else."""
    answer = client.post("/generate/", json={"prompt": "ab", "max_tokens": 3, "temperature": 0}).json()

    assert answer == {"prompt": "ab", "response": "aba"}


def test_generate_streams_the_response(client: TestClient) -> None:
    """A streamed answer of `/generate/` brings new text in `response`."""
    answer = client.post("/generate/", json={"prompt": "ab", "max_tokens": 3, "stream": True})

    assert "".join(event["response"] for event in events(answer.text)) == "aba"


def test_generate_gives_just_the_declared_outputs() -> None:
    """A project that declares outputs gets these fields and no others."""

    class Declared(BaseModel):
        response: str
        finish_reason: str

    form = _GenerateForm(AnswerHead("gen-1", 0, "m"), prompt="p", outputs=tuple(Declared.model_fields))

    assert form.whole([Generation("text", "stop", 1, 2)]) == {"response": "text", "finish_reason": "stop"}


def test_generate_gives_several_responses_where_they_are_declared(client: TestClient) -> None:
    """`responses` has every choice; in a stream each piece says whose it is."""
    body = {"prompt": "ab", "max_tokens": 2, "n": 2}

    whole = client.post("/several", json=body).json()
    pieces = events(client.post("/several", json={**body, "stream": True}).text)

    assert whole == {"responses": ["ab", "ba"]}
    texts = ["".join(piece["response"] for piece in pieces if piece["index"] == index) for index in range(2)]
    assert texts == ["ab", "ba"]
