"""What the schema says about a document, in words for people.

jsonschema decides; `_WORDINGS` says it, one function per keyword. The schema is written so that each mistake fails one
keyword: no alternatives, closed objects, a message beside each pattern.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from flashgen.diagnostics import in_words, quote
from flashgen.document import NodePath
from flashgen.resources import data_dir
from flashgen.validation import not_built
from flashgen.validation.fast_path import certainly_fits
from flashgen.validation.problems import Problems
from flashgen.validation.suggest import nearest

# What each JSON type is called, with and without an article.
_TYPE_NAMES = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "`true` or `false`",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}

# Wording a mistake costs more than finding it, and a hostile file has a hundred thousand.
MAX_FOUND = 1000

_YAML_1_1_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}

_SIZE_KEYS = ("memory", "gpu_memory", "pool")


def spec_schema() -> dict[str, Any]:
    """The language's schema."""
    path = data_dir("schemas") / "v1" / "spec.schema.json"
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


def check_structure(data: Any, problems: Problems) -> bool:
    """Reports everything in which `data` differs from the schema, and marks those nodes as broken.

    Returns whether that was all: after `MAX_FOUND` mistakes the rest goes unseen, and no other rule can be checked.
    """
    schema = spec_schema()
    if certainly_fits(data, schema, schema):
        return True
    from jsonschema.validators import Draft202012Validator  # deferred: costs more than everything else together

    for error in Draft202012Validator(schema).iter_errors(data):
        if len(problems.diagnostics) >= MAX_FOUND:
            return False
        path: NodePath = tuple(error.absolute_path)
        if "propertyNames" in error.absolute_schema_path:
            _bad_key(error, (*path, error.instance), problems)
            continue
        if path in problems.broken:
            continue  # a wrong type also fails what comes after it
        if error.validator not in ("additionalProperties", "required"):
            problems.broken.add(path)
        wording = _WORDINGS.get(str(error.validator), _other)
        wording(error, path, problems)
    return True


def _bad_key(error: Any, path: NodePath, problems: Problems) -> None:
    problems.broken.add(path)
    message = f"{quote(error.instance)} cannot be a name here"
    problems.at_key(path, "FG107", message, hint=error.schema["patternErrorMessage"])


def _unknown_keys(error: Any, path: NodePath, problems: Problems) -> None:
    known = error.schema["properties"]
    title = error.schema["title"]
    for key in error.instance:
        if key in known or key.startswith("x-") or len(problems.diagnostics) > MAX_FOUND:
            continue
        problems.broken.add((*path, key))
        if key in not_built.KEYS.get(title, ()):
            problems.at_key((*path, key), "FG108", f"{quote(key)} is not supported yet")
        else:
            message = f"unknown key {quote(key)} in {_described(title, path)}"
            problems.at_key((*path, key), "FG101", message, hint=_key_hint(key, known, title))


def _key_hint(key: str, known: Mapping[str, Any], title: str) -> str:
    if key == "required" and title == "field":
        return "fields are required unless they say `optional: true`"
    if match := nearest(key, known):
        return f"did you mean `{match}`?"
    if home := _HOMES.get(key):
        return f"`{key}` is a key of {home}"
    return f"known keys are {in_words(known)}"


def _missing_keys(error: Any, path: NodePath, problems: Problems) -> None:
    unknown = [key for key in error.instance if key not in error.schema["properties"]]
    for key in error.schema["required"]:
        # A misspelt key is one mistake, not two; `required` fails once per missing key.
        is_this_one = error.message.startswith(repr(key))
        if key in error.instance or not is_this_one or nearest(key, unknown):
            continue
        title = error.schema["title"]
        example = error.schema["properties"][key].get("examples", [""])[0]
        hint = f"add `{key}: {example}`, for instance" if isinstance(example, str) and example else None
        problems.at_key(path, "FG102", f"{_described(title, path)} needs `{key}`", hint=hint)


def _described(title: str, path: NodePath) -> str:
    """What a message calls an object: `this api`, `field `prompt``, `resources` in backticks."""
    if title in ("field", "model") and isinstance(path[-1], str) and path[-2] in ("inputs", "outputs", "models"):
        return f"{title} {quote(path[-1])}"
    if title == "spec":
        return "the spec"
    return f"this {title}" if title in ("api", "server", "model", "field") else quote(title)


def _wrong_type(error: Any, path: NodePath, problems: Problems) -> None:
    expected = error.schema["type"]
    names = [_TYPE_NAMES[name] for name in (expected if isinstance(expected, list) else [expected])]
    found = _found(error.instance)
    message = f"{_subject(path)} must be {' or '.join(names)}, found {found}"
    problems.at_value(path, "FG104", message, hint=_type_hint(error, path, problems))


def _type_hint(error: Any, path: NodePath, problems: Problems) -> str | None:
    value, expected = error.instance, error.schema["type"]
    if error.schema.get("title") == "field":
        return "write the type as a text, such as `str`, or a mapping with `type`"
    if expected == "boolean" and isinstance(value, str):
        return _boolean_hint(value)
    if "string" in expected and isinstance(value, bool | int | float):
        return f'put it in quotes: `"{problems.written(path)[:40]}"`'
    if "array" in expected and isinstance(value, dict):
        return "begin each entry with `- `"
    if isinstance(value, str) and expected in ("integer", "number"):
        return _number_hint(value)
    return None


def _boolean_hint(value: str) -> str | None:
    if meant := _YAML_1_1_BOOLEANS.get(value.lower()):
        return f"YAML 1.2 knows only `true` and `false`: write `{meant}`"
    return "write it without quotes" if value in ("true", "false") else None


def _number_hint(value: str) -> str | None:
    if value.endswith("m") and value[:-1].isdecimal():  # as Kubernetes writes thousandths of a core
        return f"write `{int(value[:-1][:9]) / 1000:g}`"
    return "write it without quotes" if value.replace(".", "", 1).isdecimal() else None


def _not_in_enum(error: Any, path: NodePath, problems: Problems) -> None:
    value, allowed = error.instance, error.schema["enum"]
    key = _key(path)
    if not_built.is_value_not_built(key, value):
        shown = quote(f"{key}: {value}") if path[-1] == key else f"{quote(value)} in {quote(key)}"
        problems.at_value(path, "FG108", f"{shown} is not supported yet")
        return
    match = nearest(value, map(str, allowed)) if isinstance(value, str) else None
    hint = f"did you mean `{match}`?" if match else None
    expected = in_words([str(word) for word in allowed], last="or")
    problems.at_value(path, "FG105", f"{_subject(path)} must be {expected}, found {_found(value)}", hint=hint)


def _no_match(error: Any, path: NodePath, problems: Problems) -> None:
    value, hint = error.instance, error.schema["patternErrorMessage"]
    if _key(path) == "path" and "{" in value:
        problems.at_value(path, "FG108", "parameters in a path are not supported yet")
        return
    if _key(path) in _SIZE_KEYS:
        hint = _size_hint(value)
    found = "is not a name" if _key(path) == "secrets" else f"cannot be {quote(value)}"  # a secret is not repeated
    problems.at_value(path, "FG107", f"{_subject(path)} {found}", hint=hint)


def _size_hint(value: str) -> str | None:
    from flashgen.units import parse_bytes

    try:
        parse_bytes(value)
    except ValueError as error:
        return str(error)
    return None


def _out_of_range(error: Any, path: NodePath, problems: Problems) -> None:
    rules = {
        "minimum": "must be at least",
        "maximum": "must be at most",
        "exclusiveMinimum": "must be above",
        "exclusiveMaximum": "must be below",
    }
    limit = error.schema[error.validator]
    message = f"{_subject(path)} {rules[error.validator]} {limit}, found {_found(error.instance)}"
    hint = None
    if _key(path) in _SIZE_KEYS:
        message = f"{_subject(path)} is only {error.instance} bytes"
        hint = f"name a unit: `{error.instance}GB`" if error.instance > 0 else "expected a size such as `16GB`"
    elif _key(path) == "top_k" and error.instance in (0, -1):
        hint = "leave `top_k` out to draw from all tokens"
    problems.at_value(path, "FG106", message, hint=hint)


def _wrong_length(error: Any, path: NodePath, problems: Problems) -> None:
    limit = error.schema[error.validator]
    if error.validator in ("minItems", "minLength", "minProperties"):
        message = f"{_subject(path)} is empty" if limit == 1 else f"{_subject(path)} needs at least {limit}"
    else:
        unit = "characters" if error.validator == "maxLength" else "entries"
        message = f"{_subject(path)} has at most {limit} {unit}, found {len(error.instance)}"
    problems.at_value(path, "FG106", message)


def _other(error: Any, path: NodePath, problems: Problems) -> None:
    problems.at_value(path, "FG107", f"{_subject(path)} does not fit the schema's `{error.validator}`")


def _subject(path: NodePath) -> str:
    """What a message calls the node at `path`: its key, or its place in a list."""
    if not path:
        return "the spec"
    if isinstance(path[-1], str):
        return quote(path[-1])
    return f"entry {path[-1] + 1} of {quote(path[-2])}" if len(path) > 1 else f"entry {path[-1] + 1}"


def _key(path: NodePath) -> str:
    """The last key of a path, not counting positions in a list."""
    return next((part for part in reversed(path) if isinstance(part, str)), "")


def _found(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float():
            return quote(value)
        case str():
            return f"the text {quote(value)}"
        case list():
            return "a list"
        case _:
            return "a mapping"


# Where a key lives that stands in a wrong place.
_HOMES = {
    **dict.fromkeys(("cpus", "memory", "gpus", "gpu_memory", "gpu_cuda_capability"), "`resources`"),
    **dict.fromkeys(("uri", "dtype", "device", "max_context", "chat_template", "generation_params"), "`model`"),
    **dict.fromkeys(("revision", "aliases", "type", "quantization"), "`model`"),
    **dict.fromkeys(("temperature", "top_p", "top_k", "max_tokens", "stop", "seed"), "`generation_params`"),
    **dict.fromkeys(("min_p", "typical_p", "n", "num_beams", "length_penalty", "logit_bias"), "`generation_params`"),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"), "`generation_params`"),
    **dict.fromkeys(("batching", "kv_cache", "deterministic"), "`engine`"),
    **dict.fromkeys(("max_requests", "max_wait"), "`batching`"),
    **dict.fromkeys(("block_size", "prefix_caching"), "`kv_cache`"),
    **dict.fromkeys(("env", "secrets"), "`container`"),
    **dict.fromkeys(("loader", "pool", "keep_in_ram", "verify"), "`weights`"),
    **dict.fromkeys(("max_loaded", "evict", "idle_timeout", "preload"), "`swap`"),
    **dict.fromkeys(("prefetch", "speculative"), "`model`"),
    **dict.fromkeys(("inputs", "outputs", "path", "method", "protocol"), "an entry of `apis`"),
    **dict.fromkeys(("resources", "engine", "weights", "swap", "rpc_port", "container"), "an entry of `servers`"),
    "targets": "`deploy`",
    "in": "a field",
}

_WORDINGS: dict[str, Callable[[Any, NodePath, Problems], None]] = {
    "additionalProperties": _unknown_keys,
    "required": _missing_keys,
    "type": _wrong_type,
    "enum": _not_in_enum,
    "pattern": _no_match,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _out_of_range),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _wrong_length
    ),
}
