"""Checks free-form JSON that travels to a worker: what Python parses is more than what msgpack carries."""

import math
from typing import Any

from flashgen_runtime.errors import RequestError

MAX_DEPTH = 32
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1


def check_json_value(value: Any, where: str, depth: int = 0) -> None:
    """Raises `RequestError` naming the place `where` of a value that no message can carry."""
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, dict):
        _check_depth(depth, where)
        for name, item in value.items():
            _check_text(name, where)
            check_json_value(item, f"{where}.{name}", depth + 1)
    elif isinstance(value, list):
        _check_depth(depth, where)
        for index, item in enumerate(value):
            check_json_value(item, f"{where}[{index}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _invalid("must be a finite number", where)
    elif isinstance(value, int) and not _INT64_MIN <= value <= _UINT64_MAX:
        raise _invalid("is too large", where)


def _check_depth(depth: int, where: str) -> None:
    if depth >= MAX_DEPTH:
        raise RequestError(f"`{where[:64]}…` is nested too deeply", kind="invalid_request", param=where[:64])


def _check_text(text: str, where: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _invalid("holds a surrogate that is no character", where) from error


def _invalid(rule: str, where: str) -> RequestError:
    # A name on the way may itself be no text.
    param = where.encode("utf-8", "replace").decode()
    return RequestError(f"`{param}` {rule}", kind="invalid_request", param=param)
