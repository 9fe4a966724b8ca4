"""Embeddings without a model: a text's vector comes from its hash."""

import hashlib
import math
import struct
from typing import NamedTuple

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import Embeddings, EmbedRequest, ModelStatus, Reply, WorkRequest
from flashgen_runtime.testing.tokenizer import CharacterTokenizer

FAKE_DIMENSIONS = 8


def fake_vector(text: str) -> list[float]:
    """A unit vector of `FAKE_DIMENSIONS` numbers that depends on nothing but the text."""
    digest = hashlib.sha256(text.encode()).digest()
    numbers = [number / 0xFFFFFFFF * 2 - 1 for number in struct.unpack(f"<{FAKE_DIMENSIONS}I", digest)]
    length = math.hypot(*numbers)
    return [number / length for number in numbers]


class FakeEmbeddings:
    """A `ServedModel` that answers everything it has in one step; a token is a character."""

    def __init__(self, status: ModelStatus) -> None:
        self._status = status
        self._waiting: dict[str, _Texts] = {}

    @property
    def status(self) -> ModelStatus:
        return self._status

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    @property
    def seconds_until_work(self) -> float | None:
        return None

    def prepare(self, request: WorkRequest) -> "_Texts":
        if not isinstance(request, EmbedRequest):
            message = f"the model `{request.model}` gives embeddings, it generates no text"
            raise RequestError(message, kind="invalid_request", param="model")
        decode = CharacterTokenizer().decode
        return _Texts(request.request_id, [text if isinstance(text, str) else decode(text) for text in request.inputs])

    def add(self, prepared: "_Texts") -> None:
        self._waiting[prepared.request_id] = prepared

    def step(self) -> list[Reply]:
        done, self._waiting = self._waiting, {}
        return [_embeddings(texts) for texts in done.values()]

    def abort(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)

    def close(self) -> None:
        assert not self._waiting, "nobody closes a model that has work"


class _Texts(NamedTuple):
    request_id: str
    texts: list[str]


def _embeddings(prepared: _Texts) -> Embeddings:
    return Embeddings(
        request_id=prepared.request_id,
        vectors=[struct.pack(f"<{FAKE_DIMENSIONS}f", *fake_vector(text)) for text in prepared.texts],
        prompt_tokens=sum(len(text) for text in prepared.texts),
    )
