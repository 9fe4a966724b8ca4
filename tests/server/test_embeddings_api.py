"""`/v1/embeddings` through the application, with a fake worker."""

import base64
import struct

import pytest
from fastapi.testclient import TestClient
from service_under_test import EMBED_MODEL

from flashgen_runtime.testing import fake_vector

PATH = "/v1/embeddings"


@pytest.mark.parametrize(
    ("inputs", "texts"),
    [("ab", ["ab"]), (["ab", "c"], ["ab", "c"]), ([97, 98], ["ab"]), ([[97, 98], [99]], ["ab", "c"])],
)
def test_inputs_take_every_form(client: TestClient, inputs: object, texts: list[str]) -> None:
    """Text, ids, or several of either give one vector each, in order, and the tokens are counted."""
    answer = client.post(PATH, json={"input": inputs, "model": EMBED_MODEL}).json()

    assert (answer["object"], answer["model"]) == ("list", EMBED_MODEL)
    assert [item["index"] for item in answer["data"]] == list(range(len(texts)))
    for item, text in zip(answer["data"], texts, strict=True):
        assert item["embedding"] == pytest.approx(fake_vector(text), abs=1e-6)
    num_tokens = sum(map(len, texts))
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_base64_is_little_endian_float32(client: TestClient) -> None:
    """The form that the Python client asks for holds the same numbers."""
    body = {"input": "ab", "encoding_format": "base64", "user": "u", "dimensions": None}

    answer = client.post(PATH, json=body).json()

    packed = base64.b64decode(answer["data"][0]["embedding"])
    assert struct.unpack("<8f", packed) == pytest.approx(fake_vector("ab"), abs=1e-6)
