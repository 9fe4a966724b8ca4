"""How a benchmark talks to an engine: JSON lines with a child process that keeps one model loaded.

The child's side, free of everything but the standard library: it runs in the peers' environments too. The child says
first what it is (`{"settings": …}`); then each line it reads is a request and each line it writes is the answer, or
`{"error": …}`. The other side is `benchmarks.systems`.
"""

import base64
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Generated:
    """What one run of a workload brought."""

    seconds: float

    # Of each request, in order.
    num_tokens: list[int]

    # From the moment on when every request had its first token; 0 if the engine does not show single tokens.
    decode_seconds: float = 0.0
    decode_tokens: int = 0


class TokenCounter:
    """Counts tokens as they come; starts its clock when it is made."""

    def __init__(self, num_requests: int) -> None:
        self._num_tokens = [0] * num_requests
        self._num_without_token = num_requests
        self._started = time.perf_counter()
        self._decode_started: float | None = None
        self._tokens_before_decode = 0

    def add(self, request: int, num_tokens: int) -> None:
        """Notes new tokens of a request."""
        if num_tokens and not self._num_tokens[request]:
            self._num_without_token -= 1
        self._num_tokens[request] += num_tokens
        if self._decode_started is None and not self._num_without_token:
            self._decode_started = time.perf_counter()
            self._tokens_before_decode = sum(self._num_tokens)

    def result(self) -> Generated:
        """To be called when the last token has come."""
        ended = time.perf_counter()
        if self._decode_started is None:
            raise RuntimeError(f"{self._num_without_token} requests have no token")
        return Generated(
            seconds=ended - self._started,
            num_tokens=self._num_tokens,
            decode_seconds=ended - self._decode_started,
            decode_tokens=sum(self._num_tokens) - self._tokens_before_decode,
        )


class Generator(Protocol):
    """An engine with a model loaded."""

    @property
    def settings(self) -> str:
        """How it runs: path, precisions, threads, versions, limits of batches."""

    def generate(self, prompts: Sequence[Sequence[int]], output_lengths: Sequence[int]) -> Generated:
        """Continues all prompts greedily, submitted at once, each by exactly its number of tokens."""


def serve_generator(start: Callable[[], Generator]) -> None:
    """A child's whole life: answers `{"prompts", "output_lengths"}` by the fields of `Generated`."""

    def started() -> tuple[str, Callable[[dict[str, Any]], dict[str, object]]]:
        generator = start()

        def answer(request: dict[str, Any]) -> dict[str, object]:
            return asdict(generator.generate(request["prompts"], request["output_lengths"]))

        return generator.settings, answer

    serve(started)


class TextEncoder(Protocol):
    """An embedding model, loaded."""

    @property
    def settings(self) -> str:
        """How it runs."""

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """One vector for each text, in order: float32, of length 1."""


def serve_encoder(start: Callable[[], TextEncoder]) -> None:
    """A child's whole life: answers `{"texts"}` by `{"seconds", "vectors"}`, the vectors in base64."""

    def started() -> tuple[str, Callable[[dict[str, Any]], dict[str, object]]]:
        encoder = start()

        def answer(request: dict[str, Any]) -> dict[str, object]:
            begin = time.perf_counter()
            vectors = encoder.encode(request["texts"])
            seconds = time.perf_counter() - begin
            return {"seconds": seconds, "vectors": [base64.b64encode(vector).decode() for vector in vectors]}

        return encoder.settings, answer

    serve(started)


def serve(start: Callable[[], tuple[str, Callable[[dict[str, Any]], dict[str, object]]]]) -> None:
    """Starts an engine, says its settings, and answers line by line until the other side hangs up."""
    die_with_parent()
    # Libraries print; what they print goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, object]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        settings, answer = start()
        say({"settings": settings})
        for line in sys.stdin:
            say(answer(json.loads(line)))
    except Exception as error:  # whatever a peer raises belongs into the report
        say({"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        answers.close()
        # Peers' threads may keep the process alive for ever.
        os._exit(1)
    os._exit(0)


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, even while it is stopped."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
