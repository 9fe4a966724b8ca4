"""Accepts a document that certainly fits the schema, without importing jsonschema.

Importing jsonschema costs more than all other work on a spec together, and most specs are right. This reads the same
schema file, knows just the keywords in it, and says "no" to anything else; jsonschema, the authority, decides then and
finds the words. A test compares the two verdicts on every sample, every wrong spec and random documents.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]

_ANNOTATIONS = frozenset({"$schema", "$defs", "title", "description", "examples", "patternErrorMessage"})


def certainly_fits(value: Any, schema: Schema, root: Schema) -> bool:
    """Whether `value` is valid; `False` also where the schema has a keyword that is not known here."""
    for keyword, limit in schema.items():
        if keyword in _ANNOTATIONS:
            continue
        check = _CHECKS.get(keyword)
        if check is None or not check(value, limit, schema, root):
            return False
    return True


def _type(value: Any, limit: Any, schema: Schema, root: Schema) -> bool:
    del schema, root
    return any(_is_of_type(value, name) for name in (limit if isinstance(limit, list) else (limit,)))


def _is_of_type(value: Any, name: str) -> bool:
    match name:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return _is_number(value) and value == int(value)
        case "number":
            return _is_number(value)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case _:
            return name == "object" and isinstance(value, dict)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _enum(value: Any, limit: Any, schema: Schema, root: Schema) -> bool:
    del schema, root
    return not isinstance(value, bool) and value in limit


def _required(value: Any, limit: Any, schema: Schema, root: Schema) -> bool:
    del schema, root
    return not isinstance(value, dict) or all(key in value for key in limit)


def _entries(value: Any, limit: Any, schema: Schema, root: Schema) -> bool:
    """`additionalProperties`, and `properties` and `patternProperties`, without which it means nothing."""
    del limit
    if not isinstance(value, dict):
        return True
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    others = schema.get("additionalProperties", {})
    for key, entry in value.items():
        inner = [known[key]] if key in known else []
        inner += [patterns[pattern] for pattern in patterns if re.search(pattern, key)]
        if not inner and others is False:
            return False
        if not all(certainly_fits(entry, each, root) for each in inner or [others]):
            return False
    return True


def _is_closed(schema: Schema) -> bool:
    """Whether `_entries` looks at the object's entries; a schema of ours always says so."""
    return "additionalProperties" in schema


def _property_names(value: Any, limit: Any, schema: Schema, root: Schema) -> bool:
    del schema
    return not isinstance(value, dict) or all(certainly_fits(key, limit, root) for key in value)


def _items(value: Any, limit: Any, schema: Schema, root: Schema) -> bool:
    del schema
    return not isinstance(value, list) or all(certainly_fits(item, limit, root) for item in value)


def _pattern(value: Any, limit: Any, schema: Schema, root: Schema) -> bool:
    del schema, root
    return not isinstance(value, str) or re.search(limit, value) is not None


def _reference(value: Any, limit: Any, schema: Schema, root: Schema) -> bool:
    del schema
    return certainly_fits(value, root["$defs"][limit.removeprefix("#/$defs/")], root)


def _compared(kind: Callable[[Any], bool], holds: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    def check(value: Any, limit: Any, schema: Schema, root: Schema) -> bool:
        del schema, root
        return not kind(value) or holds(value, limit)

    return check


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


_CHECKS: dict[str, Callable[[Any, Any, Schema, Schema], bool]] = {
    "type": _type,
    "enum": _enum,
    "required": _required,
    **dict.fromkeys(("properties", "patternProperties"), lambda _value, _limit, schema, _root: _is_closed(schema)),
    "additionalProperties": _entries,
    "propertyNames": _property_names,
    "items": _items,
    "pattern": _pattern,
    "$ref": _reference,
    "minimum": _compared(_is_number, lambda value, limit: value >= limit),
    "maximum": _compared(_is_number, lambda value, limit: value <= limit),
    "exclusiveMinimum": _compared(_is_number, lambda value, limit: value > limit),
    "exclusiveMaximum": _compared(_is_number, lambda value, limit: value < limit),
    "minLength": _compared(_is(str), lambda value, limit: len(value) >= limit),
    "maxLength": _compared(_is(str), lambda value, limit: len(value) <= limit),
    "minItems": _compared(_is(list), lambda value, limit: len(value) >= limit),
    "maxItems": _compared(_is(list), lambda value, limit: len(value) <= limit),
    "maxProperties": _compared(_is(dict), lambda value, limit: len(value) <= limit),
    "minProperties": _compared(_is(dict), lambda value, limit: len(value) >= limit),
}
