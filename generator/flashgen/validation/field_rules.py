"""Declared inputs and outputs: types that parse, attributes that agree, and fields that the protocol has."""

import keyword
from typing import Any

from flashgen.diagnostics import in_words, quote
from flashgen.document import NodePath, Place
from flashgen.protocols import Protocol
from flashgen.types import (
    Atom,
    DictType,
    ListType,
    LiteralType,
    Type,
    TypeSyntaxError,
    UnionType,
    format_type,
    members_of,
    parse_type,
)
from flashgen.validation import not_built
from flashgen.validation.facts import ApiFacts, Facts
from flashgen.validation.nodes import Node
from flashgen.validation.problems import Problems
from flashgen.validation.suggest import nearest
from flashgen.validation.type_relations import fits, has_length, is_nullable, is_within, takes_bounds

# Names that mean something else on a pydantic model.
_PYDANTIC_NAMES = frozenset(
    {"construct", "copy", "dict", "from_orm", "json", "parse_file", "parse_obj", "parse_raw"}
    | {"schema", "schema_json", "update_forward_refs", "validate"}
)


def check_fields(facts: Facts, problems: Problems) -> None:
    """Reports every declared field that cannot be kept."""
    for api in facts.apis:
        for key in ("inputs", "outputs"):
            fields = api.node.node(key, problems)
            for name in fields.data if fields else ():
                assert fields is not None, "names come from it"
                _check_field(name, fields, key, api, problems)


def _check_field(name: str, fields: Node, direction: str, api: ApiFacts, problems: Problems) -> None:
    path = fields.at(name)
    is_named_well = path not in problems.broken and _check_name(name, path, problems)
    field = fields.node(name, problems)
    type_ = _parsed_type(field, problems) if field else None
    if field is not None and type_ is not None:
        _check_attributes(field, type_, problems)
    if api.protocol is not None and is_named_well:
        check = _check_input if direction == "inputs" else _check_output
        check(name, path, field, type_, api.protocol, problems)


def _check_name(name: str, path: NodePath, problems: Problems) -> bool:
    if keyword.iskeyword(name):
        why = "is a keyword of Python"
    elif name.startswith("_"):
        why = "begins with `_`"
    elif name.startswith("model_") or name in _PYDANTIC_NAMES:
        why = "means something else on a pydantic model"
    else:
        return True
    problems.at_key(path, "FG211", f"a field cannot be called {quote(name)}: the name {why}")
    return False


def _parsed_type(field: Node, problems: Problems) -> Type | None:
    text = field.get("type")
    if text is None:
        return None
    try:
        type_ = parse_type(text)
    except TypeSyntaxError as error:
        place = _part(problems, field.at("type"), text, error.offset, error.length)
        problems.at_place(place, "FG212", error.message, hint=_type_hint(text, field))
        return None
    if atom := _unbuilt_atom(type_):
        problems.at_value(field.at("type"), "FG108", f"the type `{atom}` is not supported yet")
        return None
    return type_


def _type_hint(text: str, field: Node) -> str | None:
    is_long_form_cut_short = field.path[-1] == "name" and len(field.data) == 1
    return f"the long form also needs the type: `- {{name: {text}, type: str}}`" if is_long_form_cut_short else None


def _part(problems: Problems, path: NodePath, text: str, offset: int, length: int) -> Place:
    """The place of some characters of a text; of the whole text where it is not written plainly in one line."""
    whole = problems.value_place(path)
    written = problems.written(path)
    shift = 1 if written[:1] in ("'", '"') else 0
    if written[shift : shift + len(text)] != text:
        return whole
    start = whole.column + shift + offset
    return Place(whole.line, start, start + max(1, length))


def _unbuilt_atom(type_: Type) -> str | None:
    match type_:
        case Atom(name):
            return name if name in not_built.TYPES else None
        case ListType(inner) | DictType(inner):
            return _unbuilt_atom(inner)
        case UnionType(members):
            return next((atom for member in members if (atom := _unbuilt_atom(member))), None)
    return None


def _check_attributes(field: Node, type_: Type, problems: Problems) -> None:
    _check_order(field, "min", "max", problems)
    _check_order(field, "min_length", "max_length", problems)
    for keys, is_meaningful, kind in (
        (("min", "max"), takes_bounds(type_), "numbers"),
        (("min_length", "max_length"), has_length(type_), "texts, lists and mappings"),
    ):
        for key in keys:
            if field.get(key) is not None and not is_meaningful:
                message = f"`{key}` is for {kind}, not for `{format_type(type_)}`"
                problems.at_key(field.at(key), "FG213", message)
    _check_enum(field, type_, problems)
    for key in ("default", "example"):
        if key in field.data:
            _check_value(field, key, type_, problems)


def _check_order(field: Node, low: str, high: str, problems: Problems) -> None:
    smallest, largest = field.get(low), field.get(high)
    if smallest is not None and largest is not None and smallest > largest:
        message = f"`{low}` is greater than `{high}`"
        problems.at_value(field.at(low), "FG213", message, other=(field.at(high), f"`{high}`"))


def _check_enum(field: Node, type_: Type, problems: Problems) -> None:
    seen: set[tuple[type, Any]] = set()
    for index, value in enumerate(field.get("enum") or ()):
        path = field.at("enum", index)
        if path in problems.broken:
            continue
        if not fits(value, type_):
            problems.at_value(path, "FG213", f"{quote(_shown(value))} is not of type `{format_type(type_)}`")
        elif isinstance(value, float):
            problems.at_value(path, "FG108", f"a fraction in `enum`, {quote(_shown(value))}, is not supported yet")
        elif (type(value), value) in seen:
            problems.at_value(path, "FG202", f"{quote(_shown(value))} stands twice in this list")
        seen.add((type(value), value))


def _check_value(field: Node, key: str, type_: Type, problems: Problems) -> None:
    """A default or an example must be a value that a caller could send."""
    value, path = field.data[key], field.at(key)
    if value is None and (field.get("optional") or is_nullable(type_)):
        return
    shown = f"the {key} {quote(_shown(value))}"
    if not fits(value, type_):
        problems.at_value(path, "FG213", f"{shown} is not of type `{format_type(type_)}`")
        return
    allowed = field.get("enum")
    if allowed is not None and not any(type(value) is type(word) and value == word for word in allowed):
        other = (field.at("enum"), "the values allowed")
        problems.at_value(path, "FG213", f"{shown} is not in `enum`", other=other)
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_bounds(field, shown, value, ("min", "max"), path, problems)
    elif isinstance(value, str | list | dict):
        _check_bounds(
            field, f"the length of the {key}, {len(value)},", len(value), ("min_length", "max_length"), path, problems
        )


def _check_bounds(
    field: Node, shown: str, number: float, keys: tuple[str, str], path: NodePath, problems: Problems
) -> None:
    low, high = (field.get(key) for key in keys)
    if low is not None and number < low:
        problems.at_value(path, "FG213", f"{shown} is below `{keys[0]}`", other=(field.at(keys[0]), ""))
    if high is not None and number > high:
        problems.at_value(path, "FG213", f"{shown} is above `{keys[1]}`", other=(field.at(keys[1]), ""))


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return "[…]"
        case dict():
            return "{…}"
        case _:
            return str(value)


def _check_input(
    name: str, path: NodePath, field: Node | None, type_: Type | None, protocol: Protocol, problems: Problems
) -> None:
    wide = protocol.inputs.get(name)
    if wide is None:
        _report_unknown_field(name, path, protocol, protocol.inputs, problems)
        return
    if field is None or type_ is None:
        return
    if not is_within(type_, wide):
        message = f"`{protocol.name}` takes `{format_type(wide)}` for {quote(name)}, not `{format_type(type_)}`"
        hint = "a declared field narrows what the protocol takes; it cannot widen it"
        problems.at_value(field.at("type"), "FG214", message, hint=hint)
    elif _has_literal_in_list(type_):
        # To a type checker a list of literals is no `list[str]`: the generated class could not narrow the field.
        problems.at_value(field.at("type"), "FG108", "`literal[…]` inside `list[…]` is not supported yet")
    if name == protocol.required and field.get("optional") and "default" not in field.data:
        message = f"`{protocol.name}` cannot do without {quote(name)}: it is never optional"
        problems.at_key(field.at("optional"), "FG214", message, hint="remove `optional`, or give a `default`")


def _has_literal_in_list(type_: Type) -> bool:
    lists = [member for member in members_of(type_) if isinstance(member, ListType)]
    return any(
        isinstance(item, LiteralType) or _has_literal_in_list(item)
        for listed in lists
        for item in members_of(listed.item)
    )


def _check_output(
    name: str, path: NodePath, field: Node | None, type_: Type | None, protocol: Protocol, problems: Problems
) -> None:
    actual = protocol.outputs.get(name)
    if actual is None:
        _report_unknown_field(name, path, protocol, protocol.outputs, problems)
        return
    if field is None:
        return
    for key in field.data:
        if key in not_built.OUTPUT_ATTRIBUTES:
            problems.at_key(field.at(key), "FG108", f"`{key}` of an output is not supported yet")
    if type_ is not None and not is_within(actual, type_):
        message = f"`{protocol.name}` answers `{format_type(actual)}` for {quote(name)}, not `{format_type(type_)}`"
        problems.at_value(field.at("type"), "FG214", message)


def _report_unknown_field(
    name: str, path: NodePath, protocol: Protocol, known: dict[str, Type], problems: Problems
) -> None:
    message = f"`{protocol.name}` has no field {quote(name)} here"
    if match := nearest(name, known):
        hint = f"did you mean `{match}`?"
    else:
        hint = f"its fields are {in_words(known)}" if known else "it takes none"
    problems.at_key(path, "FG214", message, hint=hint)
