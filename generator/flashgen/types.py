"""The type grammar of declared fields: `list[dict] | str`. Never `eval`.

type = atom ("|" atom)*
atom = str int float bool bytes dict list any file image audio null list[type] dict[str,type] literal[a,b]
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Atom:
    """A type without parameters: `str`, `int`, `any`, `null` …"""

    name: str


@dataclass(frozen=True, slots=True)
class ListType:
    """`list[item]`; a bare `list` is the atom."""

    item: "Type"


@dataclass(frozen=True, slots=True)
class DictType:
    """`dict[str, value]`; a bare `dict` is the atom."""

    value: "Type"


@dataclass(frozen=True, slots=True)
class LiteralType:
    """`literal[a, b]`: one of these strings."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnionType:
    """Alternatives in the order in which they were written."""

    members: tuple["Type", ...]


Type = Atom | ListType | DictType | LiteralType | UnionType
