"""What a declared field may be in generated code: the alternatives of its type, and how each is bounded.

`python_fields` writes them as annotations, `openapi_fields` as JSON Schema; this module keeps the two equal.
"""

from math import ceil, floor
from typing import NamedTuple

from flashgen.protocols import PROTOCOLS
from flashgen.resolved import ResolvedField, Value
from flashgen.types import Atom, DictType, ListType, Type, format_type, members_of
from flashgen.user_text import UserText

NULL = Atom("null")
_ANY = Atom("any")
_SIZED = frozenset({Atom("str"), Atom("bytes"), Atom("list"), Atom("dict")})

# Fields that the runtime structures: how a spec declares them, and the class that stands for it.
_CLASSES = {
    ("openai.chat_completions", "stream_options"): ("dict", "openai.StreamOptions"),
    ("openai.chat_completions", "prediction"): ("dict", "openai.Prediction"),
    ("openai.chat_completions", "choices"): ("list[dict]", "list[openai.ChatChoice]"),
    ("openai.chat_completions", "usage"): ("dict", "openai.Usage"),
    ("openai.completions", "stream_options"): ("dict", "openai.StreamOptions"),
    ("openai.completions", "choices"): ("list[dict]", "list[openai.CompletionChoice]"),
    ("openai.completions", "usage"): ("dict", "openai.Usage"),
    ("openai.embeddings", "data"): ("list[dict]", "list[openai.Embedding]"),
    ("openai.embeddings", "usage"): ("dict", "openai.EmbeddingsUsage"),
    ("openai.models", "data"): ("list[dict]", "list[openai.Model]"),
}

# Fields that are never `None` in the runtime, and what they are for callers that leave them out.
_NEVER_NULL: dict[tuple[str, str], Value] = {("openai.embeddings", "encoding_format"): UserText("float")}


class AllowedValues(NamedTuple):
    """The values of an `enum`: texts, whole numbers, `true` and `false`."""

    values: tuple[Value, ...]


class RuntimeClass(NamedTuple):
    """A class of the runtime, as generated code names it, in the place of what the spec declares."""

    annotation: str


Member = Type | AllowedValues | RuntimeClass


class FieldMembers(NamedTuple):
    """One field as code: its alternatives, and what it is when callers leave it out."""

    members: tuple[Member, ...]
    may_be_absent: bool
    default: Value

    @property
    def only_member(self) -> Member | None:
        """The one alternative beside `None`, if there is just one: its bounds may stand at the field itself."""
        others = [member for member in self.members if member != NULL]
        return others[0] if len(others) == 1 else None


def input_members(field: ResolvedField, protocol: str) -> FieldMembers:
    """A declared input: what the spec says, within what the protocol takes."""
    never_null = (protocol, field.name) in _NEVER_NULL
    members = [_with_class(member, field.name, protocol) for member in _declared_members(field)]
    may_be_absent, default = field.optional or field.has_default, field.default if field.has_default else None
    if never_null:
        members = [member for member in members if member != NULL]
        default = _NEVER_NULL[protocol, field.name] if default is None else default
    elif may_be_absent and default is None and not {NULL, _ANY} & set(members):
        members.append(NULL)
    return FieldMembers(tuple(members), may_be_absent, default)


def output_members(field: ResolvedField, protocol: str) -> FieldMembers:
    """A declared output. An answer of OpenAI's protocols keeps their own type: a spec can only declare a wider one."""
    type_ = field.type if protocol == "generate" else PROTOCOLS[protocol].outputs[field.name]
    members = tuple(_with_class(member, field.name, protocol) for member in members_of(type_))
    return FieldMembers(members, may_be_absent=False, default=None)


def bounds_of(field: ResolvedField, member: Member) -> dict[str, int | float]:
    """The arguments of `Field` that bound this alternative."""
    bounds: dict[str, int | float | None] = {}
    if member == Atom("int"):
        # pydantic wants whole numbers as bounds of whole numbers.
        bounds = {
            "ge": None if field.min is None else ceil(field.min),
            "le": None if field.max is None else floor(field.max),
        }
    elif member == Atom("float"):
        bounds = {"ge": field.min, "le": field.max}
    elif member in _SIZED or isinstance(member, ListType | DictType):
        bounds = {"min_length": field.min_length, "max_length": field.max_length}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _declared_members(field: ResolvedField) -> list[Member]:
    if field.enum is None:
        return list(members_of(field.type))
    values = tuple(value for value in field.enum if value is not None)
    return [*([AllowedValues(values)] if values else []), *([NULL] if None in field.enum else [])]


def _with_class(member: Member, name: str, protocol: str) -> Member:
    declared, annotation = _CLASSES.get((protocol, name), (None, ""))
    if isinstance(member, AllowedValues | RuntimeClass) or format_type(member) != declared:
        return member
    return RuntimeClass(annotation)
