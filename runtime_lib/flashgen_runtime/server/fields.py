"""What the bodies of all requests have in common: which fields are taken, refused, or merely noted.

A field is declared by a model, or it is one of three kinds here: harmless (accepted without effect), not built
(accepted only with the value that changes nothing), or unknown (accepted, and named in a response header).
"""

import re
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flashgen_runtime.errors import RequestError

# A header holds a few short names, whatever a caller sends.
MAX_IGNORED_NAMES = 20
_HEADER_SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)


def _is_number(neutral: int) -> Callable[[Any], bool]:
    # `True == 1` in Python, but not to a caller.
    return lambda value: type(value) in (int, float) and value == neutral


def _is_one_of(*neutral: object) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(other) and value == other for other in neutral)


def _is_false(value: Any) -> bool:
    return value is False


# Fields that exist elsewhere, with the values that ask for nothing: refused where no model declares them.
NOT_BUILT: dict[str, Callable[[Any], bool]] = {
    "audio": _is_one_of(),
    "best_of": _is_number(1),
    "dimensions": _is_one_of(),
    "echo": _is_false,
    "function_call": _is_one_of("none", "auto"),
    "functions": _is_one_of([]),
    "logprobs": _is_false,
    "modalities": _is_one_of(["text"]),
    "moderation": _is_one_of(),
    "response_format": _is_one_of({"type": "text"}),
    "suffix": _is_one_of(""),
    "tool_choice": _is_one_of("none", "auto"),
    "tools": _is_one_of([]),
    "top_logprobs": _is_number(0),
    "web_search_options": _is_one_of(),
}


class Body(BaseModel):
    """Base of everything callers send: strict types, no NaN; `null` equals absent."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None}


class RequestBody(Body):
    """Base of the requests: refuses by name what is known but not built."""

    model: str | None = Field(None, description="Id or alias of a model; may be absent where there is just one.")

    @model_validator(mode="after")
    def _refuse_what_is_not_built(self) -> "RequestBody":
        for name, value in (self.model_extra or {}).items():
            is_neutral = NOT_BUILT.get(name)
            if is_neutral is not None and not is_neutral(value):
                raise RequestError(f"`{name}` is not supported yet", kind="invalid_request", param=name)
        return self


def unknown_fields(body: Body) -> list[str]:
    """Names that had no effect because nobody knows them, fit for a header."""
    unknown = [name for name in body.model_extra or () if name not in HARMLESS and name not in NOT_BUILT]
    return [name if _HEADER_SAFE_NAME.fullmatch(name) else "?" for name in unknown[:MAX_IGNORED_NAMES]]
