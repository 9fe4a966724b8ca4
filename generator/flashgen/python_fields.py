"""Declared fields as source of pydantic models: a fixed point of `ruff format`, whatever the spec says.

What a field may be is decided in `field_members`; how long expressions are broken, in `python_layout`.
"""

import re

from flashgen.field_members import (
    AllowedValues,
    FieldMembers,
    Member,
    RuntimeClass,
    bounds_of,
    input_members,
    output_members,
)
from flashgen.python_layout import (
    INDENT,
    LINE_LENGTH,
    Alternatives,
    Expression,
    call,
    exploded,
    fits,
    flat,
    laid_out,
    subscript,
    value_expression,
)
from flashgen.quoting import py
from flashgen.resolved import ResolvedApi, ResolvedField
from flashgen.types import Atom, DictType, ListType, LiteralType, UnionType

_ATOMS = {
    "str": "str",
    "int": "int",
    "float": "float",
    "bool": "bool",
    "bytes": "bytes",
    "dict": "dict[str, Any]",
    "list": "list[Any]",
    "any": "Any",
    "null": "None",
}

# In Python source.
_TEXT = re.compile(r'"(?:\\.|[^"\\])*"' + r"|'(?:\\.|[^'\\])*'")
_NAME = re.compile(r"[A-Za-z_]+")


def input_fields(api: ResolvedApi) -> str:
    """The body of the request's model: one statement per declared field, indented, each with its line end."""
    return "".join(field_statement(field, input_members(field, api.protocol)) for field in api.inputs)


def output_fields(api: ResolvedApi) -> str:
    """The body of the answer's model."""
    return "".join(field_statement(field, output_members(field, api.protocol)) for field in api.outputs)


def typing_imports(api: ResolvedApi) -> list[str]:
    """What the fields of an api's models import from `typing`, sorted."""
    return sorted(_names_in_models(api) & {"Annotated", "Any", "Literal"})


def pydantic_imports(api: ResolvedApi) -> list[str]:
    """What an api's models import from `pydantic`, sorted."""
    # The other protocols' answers extend a class of the runtime.
    own_base = {"BaseModel"} if api.protocol == "generate" and api.outputs else set()
    return sorted(own_base | _names_in_models(api) & {"Field"})


def field_statement(field: ResolvedField, may_be: FieldMembers) -> str:
    """One field of a model's class, indented, with its line end."""
    annotation = _annotation_of(field, may_be)
    arguments = _arguments(field, may_be)
    if not arguments:
        line = _short_statement(field, annotation, may_be)
        if line is not None:
            return line
    if may_be.may_be_absent:
        arguments = {"default": value_expression(may_be.default), **arguments}
    return _statement_with_field(field, annotation, call("Field", arguments))


def _names_in_models(api: ResolvedApi) -> set[str]:
    """Names that the source of an api's models uses; words inside texts do not count."""
    return set(_NAME.findall(_TEXT.sub("", input_fields(api) + output_fields(api))))


def _statement_with_field(field: ResolvedField, annotation: Expression, value: Expression) -> str:
    name = f"{INDENT}{field.name}: "
    if not fits(annotation, len(name) + len(" = Field(")) and fits(annotation, len(name) + len(" = (")):
        # Where `Field(` just does not fit, the formatter rather breaks after the equals sign than inside the type.
        inner = INDENT * 2
        return f"{name}{flat(annotation)} = (\n{inner}{exploded(value, indent=inner)}\n{INDENT})\n"
    return f"{_declaration(field, annotation, after=len(' = Field('))} = {exploded(value, indent=INDENT)}\n"


def _short_statement(field: ResolvedField, annotation: Expression, may_be: FieldMembers) -> str | None:
    """`name: type = value`, if it has a stable form."""
    if not may_be.may_be_absent:
        return _declaration(field, annotation, after=0) + "\n"
    line = f"{INDENT}{field.name}: {flat(annotation)} = {flat(value_expression(may_be.default))}"
    return f"{line}\n" if len(line) <= LINE_LENGTH and line.isascii() else None


def _declaration(field: ResolvedField, annotation: Expression, *, after: int) -> str:
    name = f"{INDENT}{field.name}: "
    return name + laid_out(annotation, indent=INDENT, before=len(name), after=after)


def _arguments(field: ResolvedField, may_be: FieldMembers) -> dict[str, Expression]:
    """Arguments of the field's own `Field`: the bounds of its only alternative, and what the documentation says."""
    arguments: dict[str, Expression] = {}
    if may_be.only_member is not None:
        arguments |= {name: py(bound) for name, bound in bounds_of(field, may_be.only_member).items()}
    if field.description is not None:
        arguments["description"] = py(field.description)
    if field.has_example:
        arguments["examples"] = value_expression([field.example])
    return arguments


def _annotation_of(field: ResolvedField, may_be: FieldMembers) -> Expression:
    bounds = [bounds_of(field, member) if may_be.only_member is None else {} for member in may_be.members]
    members = [_bounded(member, bound) for member, bound in zip(may_be.members, bounds, strict=True)]
    return Alternatives(tuple(members)) if len(members) > 1 else members[0]


def _bounded(member: Member, bounds: dict[str, int | float]) -> Expression:
    if not bounds:
        return _annotation(member)
    arguments: dict[str, Expression] = {name: py(bound) for name, bound in bounds.items()}
    return subscript("Annotated", [_annotation(member), call("Field", arguments)])


def _annotation(member: Member) -> Expression:
    match member:
        case RuntimeClass(annotation):
            return annotation
        case AllowedValues(values) | LiteralType(values):
            return subscript("Literal", [py(value) for value in values])
        case Atom(name):
            return _ATOMS[name]
        case ListType(item):
            return subscript("list", [_annotation(item)])
        case DictType(value):
            return subscript("dict", ["str", _annotation(value)])
        case UnionType(members):
            return Alternatives(tuple(_annotation(alternative) for alternative in members))
