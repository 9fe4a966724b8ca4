"""The type grammar of declared fields: `list[dict] | str`. Never `eval`.

type = atom ("|" atom)*
atom = str int float bool bytes dict list any file image audio null list[type] dict[str,type] literal[a,b]
"""

import re
from dataclasses import dataclass

ATOMS = ("str", "int", "float", "bool", "bytes", "dict", "list", "any", "file", "image", "audio", "null")

# Deeper types help nobody, and the parser recurses.
MAX_DEPTH = 8
MAX_LENGTH = 2000

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LITERAL_VALUE = re.compile(r"[^\[\],|\"'`\x00-\x1f\x7f-\x9f]+")


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


class TypeSyntaxError(ValueError):
    """A text that is no type; `offset` and `length` say which characters are at fault."""

    def __init__(self, message: str, *, offset: int, length: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.length = length


def parse_type(text: str) -> Type:
    """The type that `text` writes; raises `TypeSyntaxError`."""
    if len(text) > MAX_LENGTH:
        raise TypeSyntaxError(f"a type has at most {MAX_LENGTH} characters", offset=0)
    parser = _Parser(text)
    parsed = parser.union(depth=1)
    parser.expect_end()
    return parsed


def format_type(type_: Type) -> str:
    """The text that `parse_type` reads as `type_`."""
    match type_:
        case Atom(name):
            return name
        case ListType(item):
            return f"list[{format_type(item)}]"
        case DictType(value):
            return f"dict[str, {format_type(value)}]"
        case LiteralType(values):
            return f"literal[{', '.join(values)}]"
        case UnionType(members):
            return " | ".join(format_type(member) for member in members)


def members_of(type_: Type) -> tuple[Type, ...]:
    """The alternatives of a union; any other type alone."""
    return type_.members if isinstance(type_, UnionType) else (type_,)


class _Parser:
    """Recursive descent over `text`; `position` is the next character to read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def union(self, *, depth: int) -> Type:
        if depth > MAX_DEPTH:
            raise TypeSyntaxError(f"types nest at most {MAX_DEPTH} deep", offset=self.position)
        members = [self.atom(depth=depth)]
        while self.take("|"):
            self.skip_spaces()
            start = self.position
            member = self.atom(depth=depth)
            if member in members:
                raise self.error(f"`{format_type(member)}` stands twice in this union", start)
            members.append(member)
        return UnionType(tuple(members)) if len(members) > 1 else members[0]

    def atom(self, *, depth: int) -> Type:
        self.skip_spaces()
        start = self.position
        match = _WORD.match(self.text, start)
        if match is None:
            raise TypeSyntaxError(f"expected a type, found {self.found()}", offset=start)
        self.position = match.end()
        word = match[0]
        if word in ("list", "dict", "literal") and self.take("["):
            parameters = {
                "list": self.list_parameters,
                "dict": self.dict_parameters,
                "literal": self.literal_parameters,
            }
            return parameters[word](depth=depth)
        if word in ATOMS:
            return Atom(word)
        if word == "literal":
            raise TypeSyntaxError("`literal` needs its values: `literal[a, b]`", offset=start, length=len(word))
        raise TypeSyntaxError(_unknown_word(word), offset=start, length=len(word))

    def list_parameters(self, *, depth: int) -> Type:
        item = self.union(depth=depth + 1)
        self.expect("]")
        return ListType(item)

    def dict_parameters(self, *, depth: int) -> Type:
        self.skip_spaces()
        start = self.position
        key = self.union(depth=depth + 1)
        if key != Atom("str"):
            raise self.error("keys of a `dict` are `str`: write `dict[str, …]`", start)
        self.expect(",")
        value = self.union(depth=depth + 1)
        self.expect("]")
        return DictType(value)

    def literal_parameters(self, *, depth: int) -> Type:
        del depth  # values do not nest
        values: list[str] = []
        while True:
            self.skip_spaces()
            start = self.position
            match = _LITERAL_VALUE.match(self.text, start)
            if match is None:
                raise TypeSyntaxError(f"expected a value of the `literal`, found {self.found()}", offset=start)
            value = match[0].strip()
            self.position = match.end()
            if value in values:
                raise self.error(f"`{value}` stands twice in this `literal`", start)
            values.append(value)
            if not self.take(","):
                break
        self.expect("]")
        return LiteralType(tuple(values))

    def take(self, character: str) -> bool:
        self.skip_spaces()
        if not self.text.startswith(character, self.position):
            return False
        self.position += 1
        return True

    def expect(self, character: str) -> None:
        if not self.take(character):
            raise TypeSyntaxError(f"expected `{character}`, found {self.found()}", offset=self.position)

    def expect_end(self) -> None:
        self.skip_spaces()
        if self.position < len(self.text):
            raise TypeSyntaxError(f"expected `|` or the end, found {self.found()}", offset=self.position)

    def skip_spaces(self) -> None:
        while self.text.startswith(" ", self.position):
            self.position += 1

    def found(self) -> str:
        rest = self.text[self.position : self.position + 1]
        return f"`{rest}`" if rest else "the end of the type"

    def error(self, message: str, start: int) -> TypeSyntaxError:
        length = len(self.text[start : self.position].rstrip())
        return TypeSyntaxError(message, offset=start, length=max(1, length))


# What users of Python, JSON Schema and TypeScript write first.
_OTHER_WORDS = {
    "string": "str",
    "text": "str",
    "integer": "int",
    "number": "float",
    "double": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
    "map": "dict",
    "None": "null",
    "none": "null",
    "Any": "any",
    "List": "list",
    "Dict": "dict",
    "Literal": "literal[…]",
    "enum": "literal[…]",
    "Optional": "… | null",
    "optional": "… | null",
}


def _unknown_word(word: str) -> str:
    if known := _OTHER_WORDS.get(word):
        return f"`{word}` is not a type; did you mean `{known}`?"
    return f"`{word[:40]}` is not a type; types are {', '.join(ATOMS)}, list[…], dict[str, …] and literal[…]"
