"""Embeddings behind the interface of a served model: texts of all waiting requests share forward passes. No torch."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import Embeddings, EmbedRequest, ModelStatus, Reply, WorkRequest


class TextEncoder(Protocol):
    """What runs the model; `engine.encoder.Encoder`, or a fake."""

    def encode(self, sequences: Sequence[Sequence[int]]) -> list[bytes]:
        """One vector for each sequence of token ids, in order, as `messages.Embeddings` carries it."""

    def close(self) -> None:
        """Gives back all memory; there are no calls afterwards."""


class TruncatingTokenizer(Protocol):
    """What the model asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this number."""

    def encode_truncated(self, text: str, *, max_tokens: int) -> list[int]:
        """At most `max_tokens` ids, special tokens included."""


class PreparedEmbedding(NamedTuple):
    """An encoded request."""

    request_id: str
    inputs: list[list[int]]


class _OpenRequest:
    """A request whose vectors are collected."""

    def __init__(self, prepared: PreparedEmbedding, *, arrived: float) -> None:
        self.request_id = prepared.request_id
        self.arrived = arrived
        self.num_tokens = sum(len(ids) for ids in prepared.inputs)
        self.vectors = [b""] * len(prepared.inputs)
        self.num_missing = len(prepared.inputs)


class _Text(NamedTuple):
    """One input of an open request."""

    request: _OpenRequest

    # Among the request's inputs.
    place: int
    ids: list[int]


class EmbeddingsModel:
    """A `ServedModel` that turns texts into vectors.

    Args:
        status: what callers may know about the model; `max_context` tokens of a text count, the rest is cut off.
        encoder: runs the model.
        tokenizer: encodes texts; `prepare` calls it from another thread than the engine's.
        max_num_batched_tokens: tokens of one forward pass; a single text that has more runs alone.
        max_wait_seconds: how long a text waits for others to fill its forward pass.
        clock: gives seconds; for tests.
    """

    def __init__(
        self,
        status: ModelStatus,
        *,
        encoder: TextEncoder,
        tokenizer: TruncatingTokenizer,
        max_num_batched_tokens: int,
        max_wait_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status = status
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_wait_seconds = max_wait_seconds
        self._clock = clock

        # In order of arrival.
        self._waiting: list[_Text] = []
        self._num_waiting_tokens = 0

    @property
    def status(self) -> ModelStatus:
        return self._status

    @property
    def has_work(self) -> bool:
        return self.seconds_until_work == 0

    @property
    def seconds_until_work(self) -> float | None:
        if not self._waiting:
            return None
        if self._num_waiting_tokens >= self._max_num_batched_tokens:
            return 0
        oldest = self._waiting[0].request
        return max(0, oldest.arrived + self._max_wait_seconds - self._clock())

    def prepare(self, request: WorkRequest) -> PreparedEmbedding:
        if not isinstance(request, EmbedRequest):
            message = f"the model `{request.model}` gives embeddings, it does not generate text"
            raise RequestError(message, kind="invalid_request", param="model")
        inputs = [self._encode(text) for text in request.inputs]
        if not inputs or not all(inputs):
            raise RequestError("`input` is empty", kind="invalid_request", param="input")
        return PreparedEmbedding(request.request_id, inputs)

    def add(self, prepared: PreparedEmbedding) -> None:
        request = _OpenRequest(prepared, arrived=self._clock())
        self._waiting += [_Text(request, place, ids) for place, ids in enumerate(prepared.inputs)]
        self._num_waiting_tokens += request.num_tokens

    def step(self) -> list[Reply]:
        """One forward pass; answers the requests whose last text was in it."""
        if not self.has_work:
            return []
        texts = self._take_batch()
        vectors = self._encoder.encode([text.ids for text in texts])
        replies: list[Reply] = []
        for text, vector in zip(texts, vectors, strict=True):
            text.request.vectors[text.place] = vector
            text.request.num_missing -= 1
            if text.request.num_missing == 0:
                replies.append(_reply(text.request))
        return replies

    def abort(self, request_id: str) -> None:
        self._keep_waiting([text for text in self._waiting if text.request.request_id != request_id])

    def close(self) -> None:
        self._encoder.close()

    def _encode(self, text: str | list[int]) -> list[int]:
        if isinstance(text, str):
            return self._tokenizer.encode_truncated(text, max_tokens=self._status.max_context)
        vocab_size = self._tokenizer.vocab_size
        if text and not (min(text) >= 0 and max(text) < vocab_size):
            message = f"`input` holds a token id that is not between 0 and {vocab_size - 1}"
            raise RequestError(message, kind="invalid_request", param="input")
        return text[: self._status.max_context]

    def _keep_waiting(self, texts: list[_Text]) -> None:
        """Forgets all others."""
        self._waiting = texts
        self._num_waiting_tokens = sum(len(text.ids) for text in texts)

    def _take_batch(self) -> list[_Text]:
        """The oldest text, then all that fit beside it in order of arrival; given back ordered by length."""
        taken: list[_Text] = []
        left: list[_Text] = []
        room = self._max_num_batched_tokens
        for text in self._waiting:
            if len(text.ids) <= room or not taken:
                taken.append(text)
                room -= len(text.ids)
            else:
                left.append(text)
        self._keep_waiting(left)
        return sorted(taken, key=lambda text: len(text.ids))


def _reply(request: _OpenRequest) -> Embeddings:
    return Embeddings(request_id=request.request_id, vectors=request.vectors, prompt_tokens=request.num_tokens)
