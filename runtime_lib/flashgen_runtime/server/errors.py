"""Refusals and failures as HTTP: the status of each kind of error, and the body that OpenAI's clients read."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from fastapi import Response
from pydantic import BaseModel

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import FailureKind

# A model that loads, or a queue that drains, may be ready after that time.
NOT_READY_RETRY_SECONDS = 2
OVERLOADED_RETRY_SECONDS = 1


class ErrorDetails(BaseModel):
    """What went wrong, for people and for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetails


# Every status that a generated route may return besides 200, for its OpenAPI description.
RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is malformed or asks for what is not supported."},
    404: {"model": ErrorBody, "description": "No such model."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    415: {"model": ErrorBody, "description": "The body's encoding is not supported."},
    500: {"model": ErrorBody, "description": "A bug; the log has the request's id and a traceback."},
    503: {
        "model": ErrorBody,
        "description": "Not ready, overloaded or shutting down; `Retry-After` says when to retry.",
    },
}

# The same for a route that streams on request.
STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream: true` as server-sent events.",
        "content": {"text/event-stream": {}},
    },
    **RESPONSES,
}


class Refusal(NamedTuple):
    """An error on its way to the caller."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_seconds: int | None = None

    @property
    def body(self) -> bytes:
        return msgspec.json.encode({"error": self.details})

    @property
    def details(self) -> dict[str, str | None]:
        return {"message": self.message, "type": _type_of(self.status), "param": self.param, "code": self.code}


class _Kind(NamedTuple):
    status: int
    code: str | None = None
    retry_after_seconds: int | None = None


_KINDS: dict[FailureKind, _Kind] = {
    "invalid_request": _Kind(400),
    "context_length": _Kind(400, "context_length_exceeded"),
    "unknown_model": _Kind(404, "model_not_found"),
    "overloaded": _Kind(503, "overloaded", OVERLOADED_RETRY_SECONDS),
    "unavailable": _Kind(503, "unavailable", NOT_READY_RETRY_SECONDS),
    "internal": _Kind(500, "internal_error"),
}

BUG = Refusal(500, "the server failed while it handled the request; its log says why", code="internal_error")


def refusal_of(error: RequestError) -> Refusal:
    """How an error is told to the caller."""
    kind = _KINDS[error.kind]
    return Refusal(kind.status, error.message, error.param, kind.code, kind.retry_after_seconds)


def error_response(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    """The whole HTTP answer."""
    response = Response(refusal.body, refusal.status, headers, media_type="application/json")
    if refusal.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_seconds)
    return response


def _type_of(status: int) -> str:
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return "authentication_error"
        case HTTPStatus.FORBIDDEN:
            return "permission_error"
        case HTTPStatus.NOT_FOUND:
            return "not_found_error"
        case HTTPStatus.TOO_MANY_REQUESTS:
            return "rate_limit_error"
        case _:
            return "server_error" if status >= 500 else "invalid_request_error"
