"""What an api can speak: per protocol its fields, its method, the task that it needs, and the paths that imply it.

One table for validation, which compares declared fields with it, and for `stages.resolve`, which picks the protocol.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from flashgen.types import Type, parse_type

TEXT_GENERATION = "text-generation"
FEATURE_EXTRACTION = "feature-extraction"

# Ways to write a task; `-` and `_` are equal.
_TASK_ALIASES = {"embeddings": FEATURE_EXTRACTION}


class Protocol(NamedTuple):
    """One contract between callers and the API server."""

    name: str
    method: str

    # Of the models that can answer; `None` where no model is asked.
    task: str | None

    # Fields that callers may send, and the one that they must.
    inputs: dict[str, Type]
    required: str | None

    # Fields of an answer that is not streamed.
    outputs: dict[str, Type]


def canonical_task(written: str) -> str:
    """`text_generation` is `text-generation`, `embeddings` is `feature-extraction`."""
    task = written.replace("_", "-")
    return _TASK_ALIASES.get(task, task)


def task_of_untyped(declared: Collection[str | None], protocols: Iterable[Protocol]) -> str:
    """The task of a server's models without `type`: the first that an api asks for and none of the others has.

    Args:
        declared: tasks of the server's other models.
        protocols: of the apis that reach the server.
    """
    asked = [protocol.task for protocol in protocols if protocol.task]
    missing = [task for task in asked if task not in declared]
    return next(iter([*missing, *asked]), TEXT_GENERATION)


def protocol_of_path(path: str) -> str | None:
    """The name of the protocol that a path implies, built or not: `/v1/rerank` gives `rerank`.

    A prefix before `/v1` is free: `/team-a/v1/models`.
    """
    plain = path.rstrip("/")
    if plain in _PATHS:
        return _PATHS[plain]
    return next((name for known, name in _PATHS.items() if known.startswith("/v1/") and plain.endswith(known)), None)


def infer_protocol(path: str, *, task: str | None, inputs: Iterable[str]) -> str | None:
    """The protocol of an api that does not name one: from its path, else from the declared fields and the task."""
    if name := protocol_of_path(path):
        return name
    declared = set(inputs)
    for protocol in PROTOCOLS.values():
        fits_task = task is None or protocol.task == task
        if protocol.required in declared and fits_task and protocol.name in _BY_FIELDS:
            return protocol.name
    return None


def servers_for(protocol: Protocol, tasks: Sequence[Collection[str | None]]) -> list[int] | None:
    """Which servers answer an api that names none, as indices; `None` when only the user can say.

    Args:
        tasks: of each server's models as their `type` declares, in the order of the spec.
    """
    if protocol.task is None or len(tasks) == 1:
        return list(range(len(tasks)))
    fitting = [index for index, of_server in enumerate(tasks) if protocol.task in of_server]
    is_clear = len(fitting) == 1 and not any(None in of_server for of_server in tasks)
    return fitting if is_clear else None


def _protocol(
    name: str,
    *,
    inputs: dict[str, str],
    outputs: dict[str, str],
    method: str = "POST",
    task: str | None = TEXT_GENERATION,
    required: str | None = None,
) -> Protocol:
    return Protocol(
        name=name,
        method=method,
        task=task,
        inputs={field: parse_type(text) for field, text in inputs.items()},
        required=required,
        outputs={field: parse_type(text) for field, text in outputs.items()},
    )


_SAMPLING = {
    "model": "str | null",
    "max_tokens": "int | null",
    "temperature": "float | null",
    "top_p": "float | null",
    "top_k": "int | null",
    "min_p": "float | null",
    "typical_p": "float | null",
    "repetition_penalty": "float | null",
    "presence_penalty": "float | null",
    "frequency_penalty": "float | null",
    "logit_bias": "dict[str, float] | null",
    "stop": "str | list[str] | null",
    "seed": "int | null",
    "n": "int | null",
    "num_beams": "int | null",
    "length_penalty": "float | null",
    "stream": "bool | null",
}
_CHOICES = {"id": "str", "object": "str", "created": "int", "model": "str", "choices": "list[dict]", "usage": "dict"}

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _protocol(
            "openai.chat_completions",
            inputs={
                "messages": "list[dict] | str",
                **_SAMPLING,
                "max_completion_tokens": "int | null",
                "logprobs": "bool | null",
                "top_logprobs": "int | null",
                "prediction": "dict | null",
                "stream_options": "dict | null",
            },
            required="messages",
            outputs=_CHOICES,
        ),
        # Before `openai.completions`: both take a `prompt`, and declared fields choose the first that fits.
        _protocol(
            "generate",
            inputs={"prompt": "str", **_SAMPLING},
            required="prompt",
            outputs={
                "prompt": "str",
                "response": "str",
                "responses": "list[str]",
                "model": "str",
                "finish_reason": "literal[stop, length]",
                "usage": "dict",
            },
        ),
        _protocol(
            "openai.completions",
            inputs={
                "prompt": "str | list[str] | list[int] | list[list[int]]",
                **_SAMPLING,
                "logprobs": "int | null",
                "stream_options": "dict | null",
            },
            required="prompt",
            outputs=_CHOICES,
        ),
        _protocol(
            "openai.embeddings",
            inputs={
                "input": "str | list[str] | list[int] | list[list[int]]",
                "model": "str | null",
                "encoding_format": "literal[float, base64] | null",
                "user": "str | null",
            },
            required="input",
            task=FEATURE_EXTRACTION,
            outputs={"object": "str", "data": "list[dict]", "model": "str", "usage": "dict"},
        ),
        _protocol(
            "openai.models",
            inputs={},
            outputs={"object": "str", "data": "list[dict]"},
            method="GET",
            task=None,
        ),
    )
}

# Protocols that a declared field can imply: `messages`, `prompt`, `input`.
_BY_FIELDS = frozenset({"openai.chat_completions", "generate", "openai.embeddings"})

_PATHS = {
    "/v1/chat/completions": "openai.chat_completions",
    "/v1/completions": "openai.completions",
    "/v1/embeddings": "openai.embeddings",
    "/v1/models": "openai.models",
    "/generate": "generate",
    # Known, and not built yet: validation names them.
    "/v1/responses": "openai.responses",
    "/v1/audio/transcriptions": "openai.transcriptions",
    "/v1/images/generations": "openai.images",
    "/v1/files": "openai.files",
    "/v1/batches": "openai.batches",
    "/v1/rerank": "rerank",
    "/rerank": "rerank",
    "/tokenize": "tokenize",
}
