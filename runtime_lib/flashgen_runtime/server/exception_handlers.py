"""Exceptions as OpenAI-shaped answers: what FastAPI, Starlette and the endpoints raise."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from flashgen_runtime.errors import RequestError
from flashgen_runtime.server.caller import CallerLeftError
from flashgen_runtime.server.errors import Refusal, error_response, refusal_of
from flashgen_runtime.server.request_log import log_refusal

# nginx's code for a caller that closed the connection; only metrics see it.
CALLER_LEFT_STATUS = 499

# How many of one field's problems a message lists.
MAX_PROBLEMS = 4


def add_exception_handlers(app: FastAPI) -> None:
    """Makes every error an answer in one shape; bugs are left to `middleware.RequestContext`."""
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(CallerLeftError, _caller_left)


async def _request_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError), "registered for this class"
    return _refuse(refusal_of(error))


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for this class"
    return _refuse(_invalid_body(error.errors(), error.body))


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this class"
    return error_response(_http_refusal(request, error), error.headers)


async def _caller_left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CALLER_LEFT_STATUS)


def _refuse(refusal: Refusal) -> Response:
    log_refusal(refusal)
    return error_response(refusal)


def _http_refusal(request: Request, error: HTTPException) -> Refusal:
    where = f"{request.method} {request.url.path}"
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return Refusal(404, f"there is nothing at {where}", code="not_found")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return Refusal(405, f"{where} is not allowed; see the Allow header", code="method_not_allowed")
        case status:
            return Refusal(status, str(error.detail))


def _invalid_body(errors: Sequence[Any], body: Any) -> Refusal:
    first = _most_telling(errors, body)
    if first["type"] == "json_invalid":
        return Refusal(
            400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}", code="invalid_json"
        )
    path = first["loc"][1:]
    if not path:
        return Refusal(400, "the body must be a JSON object, sent with `content-type: application/json`")
    field = path[0]
    if first["type"] == "missing":
        return Refusal(400, f"`{_param(path)}` is required", _param(path))
    # Every alternative of a union adds its own; they differ behind the field's name.
    problems = [error["msg"] for error in errors if error["loc"][1:2] == (field,)]
    return Refusal(400, f"`{field}`: {_sentence(problems)}", _param(path))


def _most_telling(errors: Sequence[Any], body: Any) -> Any:
    """The first error about something that the caller wrote, else the first."""
    written = body if isinstance(body, dict) else {}
    return next((error for error in errors if len(error["loc"]) > 1 and error["loc"][1] in written), errors[0])


def _param(path: Sequence[int | str]) -> str:
    """The field's name; inside a nested object the path to it."""
    names = [str(part) for part in path]
    is_nested = len(names) == 2 and names[0] in ("prediction", "stream_options")
    return ".".join(names) if is_nested else names[0]


def _sentence(problems: Sequence[str]) -> str:
    unique = list(dict.fromkeys(problem[0].lower() + problem[1:] for problem in problems))
    return ", or ".join(unique[:MAX_PROBLEMS])
