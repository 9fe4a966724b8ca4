"""Inputs that may be text or token ids, one or many."""

from typing import Annotated

from pydantic import Field

from flashgen_runtime.errors import RequestError

# Ids that the model does not have are refused by the worker; these are the ones that no model has.
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


def as_list_of_inputs(
    value: str | list[str] | list[int] | list[list[int]], *, param: str
) -> list[str] | list[list[int]]:
    """The inputs one by one: a string and a list of ids are one each. Raises `RequestError` if there is none."""
    if isinstance(value, str):
        return [value]
    if not value:
        # A sub-class that narrows the field may have lost its bounds.
        raise RequestError(f"`{param}` must not be empty", kind="invalid_request", param=param)
    if isinstance(value[0], int):
        return [value]  # a list that begins with an id holds only ids
    return value  # and any other only what its first item is
