"""Text that a user wrote, which reaches an output only through a quoting filter."""

from typing import NoReturn


class UserText:
    """Wraps free text so that printing it into a template is an error.

    A `str` subclass would not do: `~`, `%`, `upper` and `strip` give plain strings. The underscore keeps the sandbox
    from reading the value.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UserText) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __bool__(self) -> bool:
        return bool(self._text)

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("user text needs a quoting filter, such as `| py` or `| yaml`")

    __str__ = __repr__ = __format__ = _refuse


def plain_text(text: UserText) -> str:
    """The text itself, for quoting filters and for data that a serialiser writes."""
    return text._text
