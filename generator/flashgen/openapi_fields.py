"""Declared fields as JSON Schema, the way pydantic and FastAPI describe them."""

from collections.abc import Mapping, Sequence
from typing import Any

from flashgen.field_members import (
    AllowedValues,
    FieldMembers,
    Member,
    RuntimeClass,
    bounds_of,
    input_members,
    output_members,
)
from flashgen.quoting import plain_value
from flashgen.resolved import ResolvedField
from flashgen.types import Atom, DictType, ListType, LiteralType, UnionType
from flashgen.user_text import plain_text

Schema = dict[str, Any]

_ATOMS: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "dict": {"type": "object", "additionalProperties": True},
    "list": {"type": "array", "items": {}},
    "any": {},
    "null": {"type": "null"},
}
_BOUNDS = {"ge": "minimum", "le": "maximum"}
_LENGTHS = {
    "array": {"min_length": "minItems", "max_length": "maxItems"},
    "object": {"min_length": "minProperties", "max_length": "maxProperties"},
    "string": {"min_length": "minLength", "max_length": "maxLength"},
}
_JSON_TYPES: dict[type, str] = {str: "string", bool: "boolean", int: "integer"}


def input_schema(field: ResolvedField, protocol: str, inherited: Mapping[str, Schema]) -> Schema:
    """The schema of a declared input; `inherited` are the protocol's own properties."""
    return _field_schema(field, input_members(field, protocol), inherited)


def output_schema(field: ResolvedField, protocol: str, inherited: Mapping[str, Schema]) -> Schema:
    """The schema of a declared output."""
    return _field_schema(field, output_members(field, protocol), inherited)


def _field_schema(field: ResolvedField, may_be: FieldMembers, inherited: Mapping[str, Schema]) -> Schema:
    alternatives = [_member_schema(field, member, inherited) for member in may_be.members]
    schema = _any_of(alternatives)
    if not any("$ref" in alternative for alternative in alternatives):
        schema["title"] = field.name.title().replace("_", " ")
    if field.description is not None:
        schema["description"] = plain_text(field.description)
    if may_be.may_be_absent and may_be.default is not None:
        schema["default"] = plain_value(may_be.default)
    if field.has_example:
        schema["examples"] = [plain_value(field.example)]
    return schema


def _member_schema(field: ResolvedField, member: Member, inherited: Mapping[str, Schema]) -> Schema:
    if isinstance(member, RuntimeClass):
        return _class_schema(inherited[field.name])
    schema = _schema(member)
    for name, bound in bounds_of(field, member).items():
        # FastAPI writes all limits of numbers as floats.
        lengths = _LENGTHS.get(schema["type"], {})
        schema |= {lengths[name]: bound} if name in lengths else {_BOUNDS[name]: float(bound)}
    return schema


def _class_schema(inherited: Schema) -> Schema:
    """What the protocol says about a field that it structures, without its own words about it."""
    own_words = ("title", "description", "default", "examples", "anyOf")
    alternatives = [schema for schema in inherited.get("anyOf", [inherited]) if schema != _ATOMS["null"]]
    return {key: value for key, value in alternatives[0].items() if key not in own_words}


def _schema(member: Member) -> Schema:
    match member:
        case Atom(name):
            return dict(_ATOMS[name])
        case AllowedValues(values) | LiteralType(values):
            return _values_schema([plain_value(value) for value in values])
        case ListType(item):
            return {"type": "array", "items": _schema(item)}
        case DictType(value):
            return {"type": "object", "additionalProperties": _schema(value) or True}
        case UnionType(members):
            return _any_of([_schema(alternative) for alternative in members])
        case _:
            raise AssertionError("classes of the runtime stand at the top of a field's type")


def _values_schema(values: Sequence[Any]) -> Schema:
    types = {_JSON_TYPES[type(value)] for value in values}
    schema: Schema = {"const": values[0]} if len(values) == 1 else {"enum": list(values)}
    return {"type": types.pop(), **schema} if len(types) == 1 else schema


def _any_of(alternatives: Sequence[Schema]) -> Schema:
    distinct: list[Schema] = []
    for alternative in alternatives:
        for schema in alternative["anyOf"] if alternative.keys() == {"anyOf"} else [alternative]:
            if schema not in distinct:
                distinct.append(schema)
    return dict(distinct[0]) if len(distinct) == 1 else {"anyOf": distinct}
