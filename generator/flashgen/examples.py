"""Requests that a generated API takes: its README and `flashgen run` show one, and its tests send it."""

from flashgen.protocols import PROTOCOLS
from flashgen.resolved import ResolvedApi, ResolvedField, Value
from flashgen.types import Atom, DictType, ListType, LiteralType, Type, members_of
from flashgen.user_text import UserText

_TEXT = "Hello"
_MESSAGE: dict[str, Value] = {"role": UserText("user"), "content": UserText(_TEXT)}
_PREDICTION: dict[str, Value] = {"type": UserText("content"), "content": UserText(_TEXT)}

# Enough to see several pieces of a stream, and quick on every machine.
_MAX_TOKENS = 8


def example_body(api: ResolvedApi, max_tokens: int = _MAX_TOKENS) -> dict[str, Value]:
    """A body with what the protocol and the spec require, and `max_tokens`, within the declared bounds."""
    protocol = PROTOCOLS[api.protocol]
    declared = {field.name: field for field in api.inputs}
    body: dict[str, Value] = {}
    models = [model.id for server in api.servers for model in server.models if model.task == protocol.task]
    if len(set(models)) > 1:
        body["model"] = models[0]
    if protocol.required is not None and protocol.required not in declared:
        body[protocol.required] = _value(protocol.inputs[protocol.required], protocol.required)
    for field in api.inputs:
        if not (field.optional or field.has_default) or field.name in (protocol.required, "max_tokens"):
            body[field.name] = _field_value(field, models)
    if must_stream(api):
        body["stream"] = True
    if "max_tokens" in protocol.inputs:
        body.setdefault("max_tokens", max_tokens)
    return body


def required_field(api: ResolvedApi) -> str | None:
    """The field that the protocol cannot do without, unless the spec has a default for it."""
    required = PROTOCOLS[api.protocol].required
    has_default = any(field.name == required and field.has_default for field in api.inputs)
    return None if has_default else required


def can_stream(api: ResolvedApi) -> bool:
    """Whether a caller may ask for a stream."""
    allowed = [field.enum for field in api.inputs if field.name == "stream" and field.enum is not None]
    return "stream" in PROTOCOLS[api.protocol].inputs and all(True in values for values in allowed)


def must_stream(api: ResolvedApi) -> bool:
    """Whether the declared fields leave callers nothing but a stream."""
    for field in api.inputs:
        if field.name == "stream_options" and not (field.optional or field.has_default):
            return True
        if field.name == "stream" and field.enum is not None and False not in field.enum:
            return True
    return False


def _field_value(field: ResolvedField, models: list[UserText]) -> Value:
    if field.has_example:
        return field.example
    if field.has_default and field.default is not None:
        return field.default
    if field.enum is not None:
        return field.enum[0]
    if field.name == "model" and Atom("str") in members_of(field.type):
        return models[0]
    return _value(field.type, field.name, field)


def _value(type_: Type, name: str, field: ResolvedField | None = None) -> Value:
    """Some value of the type; of a union, of the first member that says something."""
    member = next((member for member in members_of(type_) if member != Atom("null")), type_)
    length = _length(field)
    match member:
        case ListType(item):
            return [_item(item, name) for _ in range(_clamped(1, length))]
        case LiteralType(values):
            return UserText(values[0])
        case DictType() | Atom("dict"):
            return dict(_PREDICTION) if name == "prediction" else {}
        case Atom("int"):
            return _clamped(_MAX_TOKENS, (field.min, field.max) if field else (None, None))
        case Atom("float"):
            low, high = (field.min, field.max) if field else (None, None)
            return max(low if low is not None else 0.0, min(0.5, high if high is not None else 0.5))
        case Atom("bool"):
            return False
        case Atom("list"):
            return [UserText(_TEXT)] * _clamped(1, length)
        case _:
            size = _clamped(len(_TEXT), length)
            return UserText((_TEXT * (size // len(_TEXT) + 1))[:size])


def _item(type_: Type, name: str) -> Value:
    return dict(_MESSAGE) if name == "messages" else _value(type_, name)


def _length(field: ResolvedField | None) -> tuple[int | None, int | None]:
    return (field.min_length, field.max_length) if field else (None, None)


def _clamped(number: int, bounds: tuple[float | None, float | None]) -> int:
    low, high = bounds
    if low is not None and number < low:
        return -int(-low // 1)
    return int(high) if high is not None and number > high else number
