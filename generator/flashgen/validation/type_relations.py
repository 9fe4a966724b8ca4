"""How types relate: which values fit a type, and which types are narrower than others.

A bare `list` or `dict` leaves its items open, so it goes with any list or dict.
"""

from typing import Any

from flashgen.types import Atom, DictType, ListType, LiteralType, Type, UnionType, members_of

_NUMERIC = frozenset({"int", "float"})
_SIZED = frozenset({"str", "bytes", "list", "dict"})


def fits(value: Any, type_: Type) -> bool:
    """Whether `value`, as YAML gives it, is of type `type_`."""
    match type_:
        case UnionType(members):
            return any(fits(value, member) for member in members)
        case ListType(item):
            return isinstance(value, list) and all(fits(element, item) for element in value)
        case DictType(inner):
            return isinstance(value, dict) and all(fits(element, inner) for element in value.values())
        case LiteralType(values):
            return isinstance(value, str) and value in values
        case Atom(name):
            return _fits_atom(value, name)


def is_within(narrow: Type, wide: Type) -> bool:
    """Whether every value of `narrow` is one of `wide`: `str` is within `list[dict] | str`."""
    if isinstance(narrow, UnionType):
        return all(is_within(member, wide) for member in narrow.members)
    return any(_is_member_within(narrow, member) for member in members_of(wide))


def takes_bounds(type_: Type) -> bool:
    """Whether `min` and `max` say something about values of the type."""
    return any(isinstance(member, Atom) and member.name in _NUMERIC for member in members_of(type_))


def has_length(type_: Type) -> bool:
    """Whether `min_length` and `max_length` say something about values of the type."""
    return any(
        isinstance(member, ListType | DictType) or (isinstance(member, Atom) and member.name in _SIZED)
        for member in members_of(type_)
    )


def is_nullable(type_: Type) -> bool:
    """Whether null is one of the type's values."""
    return any(member in (Atom("null"), Atom("any")) for member in members_of(type_))


def _fits_atom(value: Any, name: str) -> bool:
    match name:
        case "any":
            return True
        case "null":
            return value is None
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "list":
            return isinstance(value, list)
        case "dict":
            return isinstance(value, dict)
        case _:
            return isinstance(value, str)


def _is_member_within(narrow: Type, wide: Type) -> bool:
    if narrow == wide or wide == Atom("any"):
        return True
    match narrow, wide:
        case ListType(item), ListType(wide_item):
            return is_within(item, wide_item)
        case DictType(value), DictType(wide_value):
            return is_within(value, wide_value)
        case LiteralType(values), LiteralType(wide_values):
            return set(values) <= set(wide_values)
        case (Atom("list"), ListType()) | (ListType(), Atom("list")):
            return True
        case (Atom("dict"), DictType()) | (DictType(), Atom("dict")):
            return True
        case (Atom("int"), Atom("float")) | (LiteralType(), Atom("str")):
            return True
    return False
