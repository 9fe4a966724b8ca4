"""What an unquoted YAML scalar means: the core schema of YAML 1.2 without infinity and NaN.

`on`, `off`, `yes` and `no` are texts, `010` is ten, `1:30` and `2024-01-01` are texts, `1e3` is a number.
"""

import math
import re

from flashgen.document import Scalar

# No setting needs more, and longer ones would be slow to read.
_MAX_DIGITS = 400

_NUMBER_START = frozenset("0123456789+-.")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def core_scalar(text: str) -> Scalar:
    """The value of an unquoted scalar; raises `ValueError` for numbers that are not finite or far too long."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBER_START:
        return text
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("infinity and NaN are not numbers that a spec can hold")
    for pattern, base in ((_INTEGER, 10), (_OCTAL, 8), (_HEXADECIMAL, 16)):
        if pattern.fullmatch(text):
            return _integer(text, base)
    if _FLOAT.fullmatch(text):
        return _finite_float(text)
    return text


def _integer(text: str, base: int) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has at most {_MAX_DIGITS} digits")
    return int(text[2:] if base != 10 else text, base)


def _finite_float(text: str) -> float:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has at most {_MAX_DIGITS} digits")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("this number is too large")
    return number
