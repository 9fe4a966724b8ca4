"""What the API server and the workers say to each other: every message on the wire, and nothing else.

Messages are msgpack arrays (see `transport.codec`). A new field goes to the end and has a default, so that an API
server and a worker one version apart understand each other.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

PROTOCOL_VERSION = 1

FinishReason = Literal["stop", "length"]
WorkerState = Literal["starting", "loading", "ready", "draining", "failed"]
FailureKind = Literal["invalid_request", "context_length", "unknown_model", "overloaded", "unavailable", "internal"]


class GenerationParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a caller, or the spec, says about decoding; `None` leaves the choice to the next source.

    Sources in order: `generation_config.json` of the checkpoint, then the spec, then the request.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    # Added to the logits of tokens; the keys are token ids as text, since JSON knows no others.
    logit_bias: dict[str, float] | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None

    # Choices of one request.
    n: int | None = None

    # More than one: beam search.
    num_beams: int | None = None
    length_penalty: float | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=True):
    """Base of everything that travels; `array_like` keeps frames small."""


# From the API server to a worker.


class Hello(Message, frozen=True):
    """The first message on a connection; the worker answers with its `WorkerStatus`."""

    protocol_version: int = PROTOCOL_VERSION


class GenerateRequest(Message, frozen=True):
    """Continue a text or a conversation; exactly one of `prompt` and `messages` is set."""

    request_id: str
    # Id or alias of a model.
    model: str

    # Text, or token ids.
    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    params: GenerationParams = GenerationParams()

    # How many alternatives of each token to report beside its own log probability; `None`: report nothing.
    logprobs: int | None = None

    # What the caller expects the completion to be; it saves time where it is right and changes nothing else.
    prediction: str | None = None


class EmbedRequest(Message, frozen=True):
    """Turn texts, or lists of token ids, into one vector each."""

    request_id: str
    model: str
    inputs: Sequence[str | list[int]]


class Cancel(Message, frozen=True):
    """The caller is gone: free what the request holds. Unknown ids are ignored, since answers may cross it."""

    request_id: str


# From a worker to the API server.


# "unloaded": on the disk, or still to be fetched.
Residency = Literal["unloaded", "loading", "loaded", "unloading", "failed"]


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One model as `/v1/models` and the router see it."""

    id: str
    aliases: tuple[str, ...] = ()
    task: str = "text-generation"
    dtype: str = ""

    # Longest prompt plus completion, in tokens.
    max_context: int = 0

    # Who supplied the chat template; with "none" the contents of a conversation are joined by newlines.
    chat_template: Literal["spec", "checkpoint", "none"] = "none"

    # "int8" or "int4"; empty: the weights are in `dtype`.
    quantization: str = ""

    # "native", "paged" or "plain" (see docs/concepts/batching.md), and why not a faster one.
    path: str = ""
    path_reason: str = ""
    kv_cache_dtype: str = ""

    # The kernels' instruction set, or "torch".
    kernels: str = ""

    # Where the model is: a request for one that is not loaded waits until it is.
    residency: Residency = "loaded"

    # What it takes in memory while it is loaded, as far as is known; and why loading failed.
    memory_bytes: int = 0
    problem: str = ""

    # "ngram", "draft" or "tree"; empty where nothing is guessed but what a request predicts.
    speculative: str = ""


class WorkerStatus(Message, frozen=True):
    """Sent in answer to `Hello` and whenever the state changes."""

    # New for every start of the process: messages of an earlier epoch are discarded.
    epoch: str
    state: WorkerState
    models: tuple[ModelStatus, ...] = ()

    # Why, when the state is "failed"; what is going on, otherwise.
    detail: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token that was chosen, its log probability by the model's own logits, and the likeliest tokens in its place."""

    token: str
    token_id: int
    logprob: float

    # Text, id and log probability, likeliest first.
    top: list[tuple[str, int, float]] = []

    # Of a token that is no whole character; `None` where `token` says it all.
    token_bytes: bytes | None = None


class TextDelta(Message, frozen=True):
    """New text of one choice of a request; the last one of a choice carries the finish reason."""

    request_id: str
    text: str = ""
    finish_reason: FinishReason | None = None

    # Counts so far; `cached_tokens` of the prompt were found in the prefix cache.
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    # Which of the request's choices this is, and how many are still open after it.
    index: int = 0
    open_choices: int = 0

    # Of the new tokens, when the request asked; their text may come with a later delta.
    logprobs: list[TokenLogprob] = []


class Embeddings(Message, frozen=True):
    """The whole answer to an `EmbedRequest`."""

    request_id: str

    # One vector per input, in order: little-endian float32 values.
    vectors: list[bytes]
    prompt_tokens: int


class RequestFailure(Message, frozen=True):
    """The end of a request that could not be served."""

    request_id: str
    kind: FailureKind
    message: str

    # Name of the field at fault, as the caller wrote it.
    param: str | None = None


class RepliesLost(Message, frozen=True):
    """The server's queue was full and replies to it were dropped: it fails its open requests and says hello again."""


Reply = TextDelta | Embeddings | RequestFailure


class StepOutputs(Message, frozen=True):
    """All replies that one engine step has for one API server."""

    epoch: str
    replies: list[Reply]


WorkRequest = GenerateRequest | EmbedRequest
ToWorker = Hello | GenerateRequest | EmbedRequest | Cancel
FromWorker = WorkerStatus | StepOutputs | RepliesLost


def is_final(reply: Reply) -> bool:
    """Whether nothing follows this reply for its request."""
    return not isinstance(reply, TextDelta) or (reply.finish_reason is not None and reply.open_choices == 0)
