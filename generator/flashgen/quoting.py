"""Writes values into other languages so that the text stays text: one function per language.

Each takes `UserText` or plain data and gives source that its language reads back as exactly that value. How numbers
are shown with units is in `quantities`.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from flashgen.user_text import UserText, plain_text

# Characters with a name of their own in a double-quoted string, the same in Python, JSON, YAML and TOML.
_SHORT_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}

# What every YAML reader takes for a string without quotes: letters, digits and harmless punctuation.
_PLAIN_YAML = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*(?: [A-Za-z0-9_/][A-Za-z0-9_./-]*)*")

# Words that YAML 1.1 or 1.2 reads as something else than a string.
_YAML_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf"})

_CLOSING_QUOTES = re.compile(r'"{2,}|"$')

# Punctuation that Markdown gives a meaning inside a line.
_MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]<>|&~$])")
_MARKDOWN_LINE_START = re.compile(r"^(\d*)([#+=.)-])")


def text_of(value: object) -> str:
    """The text of a `UserText` or a `str`; numbers have other filters."""
    if isinstance(value, UserText):
        return plain_text(value)
    if isinstance(value, str):
        return value
    raise TypeError(f"expected text, found {type(value).__name__}")


def plain_value(value: object) -> Any:
    """A value of a spec as plain data, for a serialiser."""
    if isinstance(value, UserText):
        return plain_text(value)
    if isinstance(value, Mapping):
        return {text_of(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [plain_value(item) for item in value]
    return value


def py(value: object) -> str:
    """A Python literal, quoted as ruff format would."""
    if isinstance(value, (UserText, str)):
        return _python_string(text_of(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{py(key)}: {py(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(py(item) for item in value) + "]"
    if value is None or isinstance(value, (bool, int, float)):
        return _python_number(value)
    raise TypeError(f"no Python literal for {type(value).__name__}")


def yaml(value: object) -> str:
    """A YAML value on one line that readers of YAML 1.1 and 1.2 agree on."""
    if isinstance(value, (UserText, str)):
        return _yaml_string(text_of(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{yaml(key)}: {yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(yaml(item) for item in value) + "]"
    if isinstance(value, float):
        return _yaml_float(value)
    return _json_scalar(value)


def compose(value: object) -> str:
    """A YAML value for compose.yaml, where `$` starts a variable unless doubled."""
    if isinstance(value, (UserText, str)):
        return _yaml_string(text_of(value).replace("$", "$$"))
    return yaml(value)


def k8s_env(value: object) -> str:
    """A YAML value for a container's `env`, `command` or `args`, where `$(NAME)` is a variable unless doubled."""
    return compose(value)


def json_value(value: object) -> str:
    """A JSON value on one line."""
    return json.dumps(plain_value(value), ensure_ascii=True, allow_nan=False)


def json_text(value: object) -> UserText:
    """A JSON value as a text that still needs quoting for the place where it goes."""
    return UserText(json_value(value))


def toml(value: object) -> str:
    """A TOML value on one line."""
    if isinstance(value, (UserText, str)):
        return '"' + _escaped(text_of(value), quote='"', wide="\\U") + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, (bool, int, float)):
        return _json_scalar(value)
    raise TypeError(f"no TOML value for {type(value).__name__}")


def sh(value: object) -> str:
    """One word of a POSIX shell command."""
    text = text_of(value)
    if "\0" in text:
        raise ValueError("a shell word cannot hold NUL")
    return shlex.quote(text)


def make(value: object) -> str:
    """One word of a shell command in a recipe of a Makefile, where `$` starts a variable unless doubled."""
    text = text_of(value)
    if "\n" in text or "\r" in text:
        raise ValueError("a line of a Makefile cannot hold a line break")
    return sh(text).replace("$", "$$")


def comment(value: object) -> str:
    """One line for a comment of any language: it cannot end the comment nor continue on the next line."""
    line = _one_line(text_of(value)).rstrip("\\ ")
    return line.replace("*/", "* /").replace("-->", "-- >")


def file_name(value: object) -> UserText:
    """The last part of a path, which still needs quoting for the place where it goes."""
    return UserText(text_of(value).rpartition("/")[2])


def md(value: object) -> str:
    """Markdown that shows exactly this text, on one line."""
    escaped = _MARKDOWN_SPECIAL.sub(r"\\\1", _one_line(text_of(value)))
    return _MARKDOWN_LINE_START.sub(r"\1\\\2", escaped)


def md_code(value: object) -> str:
    """A Markdown code span that holds this text, on one line."""
    line = _one_line(text_of(value)).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def docstring(value: object, indent: int = 4) -> str:
    """The inside of a Python docstring: what goes between the triple quotes, its later lines indented.

    The text keeps its own line breaks, so that `inspect.getdoc` gives what `docstring_value` gives.
    """
    text = docstring_value(value).replace("\\", "\\\\")
    # Quotes side by side, and one at the end, would close the docstring.
    text = _CLOSING_QUOTES.sub(lambda found: '\\"' * len(found[0]), text)
    lines = text.split("\n")
    body = "\n".join([lines[0], *(" " * indent + line if line else "" for line in lines[1:])])
    return body if len(lines) == 1 else f"{body}\n{' ' * indent}"


def docstring_value(value: object) -> str:
    """The text as a docstring can carry it: printable characters, no blank margins, no leading or trailing blanks."""
    lines = [_printable(line).strip() for line in re.split(r"\r\n|\r|\n", text_of(value))]
    return "\n".join(lines).strip()


def _python_string(text: str) -> str:
    quote = "'" if text.count('"') > text.count("'") else '"'
    return quote + _escaped(text, quote=quote, wide="\\U") + quote


def _python_number(value: object) -> str:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'float("{value}")'
    return repr(value)


def _yaml_string(text: str) -> str:
    if _PLAIN_YAML.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    return '"' + _escaped(text, quote='"', wide="\\U") + '"'


def _yaml_float(value: float) -> str:
    if value != value:
        return ".nan"
    if value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    # NOTE: YAML 1.1 reads `1e-05` as a string: a float needs its dot.
    mantissa, _, exponent = repr(value).partition("e")
    if not exponent:
        return mantissa
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent if exponent[0] in '+-' else '+' + exponent}"


def _json_scalar(value: object) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value, allow_nan=False)
    raise TypeError(f"no literal for {type(value).__name__}")


def _escaped(text: str, *, quote: str, wide: str) -> str:
    """Escapes the quote, backslashes and whatever is not printable (line separators, byte order marks, controls)."""
    return "".join(_escaped_character(character, quote=quote, wide=wide) for character in text)


def _escaped_character(character: str, *, quote: str, wide: str) -> str:
    if character == quote:
        return "\\" + quote
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"{wide}{code:08x}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _one_line(text: str) -> str:
    return " ".join(_printable(text).split())
