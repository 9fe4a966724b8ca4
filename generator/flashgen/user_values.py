"""Wraps texts inside plain data, so that no template prints one without a quoting filter."""

from flashgen.resolved import Value
from flashgen.spec import Plain
from flashgen.user_text import UserText


def wrapped(value: Plain) -> Value:
    """The same value with every text as `UserText`; keys of mappings stay plain, for look-ups."""
    if isinstance(value, str):
        return UserText(value)
    if isinstance(value, list):
        return [wrapped(item) for item in value]
    if isinstance(value, dict):
        return {key: wrapped(item) for key, item in value.items()}
    return value
