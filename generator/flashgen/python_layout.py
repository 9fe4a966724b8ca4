"""Lays out Python expressions as `ruff format` would: on one line where they fit, else one part per line.

An expression is a `str` that stays as it is, or one of the three shapes below. Lists and dicts with text beyond ASCII
are always exploded: how wide such characters are is a matter of taste, and the trailing comma makes the form stable.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flashgen.quoting import py
from flashgen.resolved import Value

# As `[tool.ruff] line-length` in the generated pyproject.toml.
LINE_LENGTH = 120
INDENT = "    "


class Bracketed(NamedTuple):
    """`Literal["a", "b"]`, `Field(ge=1)`: parts between brackets, separated by commas."""

    opening: str
    parts: tuple["Expression", ...]
    closing: str
    is_subscript: bool = False


class Prefixed(NamedTuple):
    """`default=[1, 2]`, `"key": [1, 2]`: a name or key before an expression."""

    prefix: str
    expression: "Expression"


class Alternatives(NamedTuple):
    """`str | list[str]`."""

    members: tuple["Expression", ...]


Expression = str | Bracketed | Prefixed | Alternatives


def call(name: str, arguments: dict[str, "Expression"]) -> Bracketed:
    """A call with keyword arguments."""
    return Bracketed(f"{name}(", tuple(Prefixed(f"{key}=", value) for key, value in arguments.items()), ")")


def subscript(name: str, parts: Sequence[Expression]) -> Bracketed:
    """A type with parameters."""
    return Bracketed(f"{name}[", tuple(parts), "]", is_subscript=True)


def value_expression(value: Value) -> Expression:
    """A value from the spec."""
    if isinstance(value, list) and value:
        return Bracketed("[", tuple(value_expression(item) for item in value), "]")
    if isinstance(value, dict) and value:
        return Bracketed("{", tuple(Prefixed(f"{py(k)}: ", value_expression(v)) for k, v in value.items()), "}")
    return py(value)


def lines_of(value: Value) -> str:
    """A dict from the spec as a literal, one entry per line."""
    return exploded(value_expression(value), indent="")


def import_list(names: Iterable[str], statement: str) -> str:
    """`from api.routes import` and the names behind it, in the order and the form that isort of ruff wants."""
    ordered = sorted(names, key=_natural_order)
    line = f"{statement} {', '.join(ordered)}"
    if len(line) <= LINE_LENGTH:
        return line
    return f"{statement} (\n" + "".join(f"{INDENT}{name},\n" for name in ordered) + ")"


def flat(expression: Expression) -> str:
    """The expression on one line, however long."""
    match expression:
        case str():
            return expression
        case Bracketed(opening, parts, closing):
            return opening + ", ".join(flat(part) for part in parts) + closing
        case Prefixed(prefix, inner):
            return prefix + flat(inner)
        case Alternatives(members):
            return " | ".join(flat(member) for member in members)


def laid_out(expression: Expression, *, indent: str, before: int, after: int) -> str:
    """The expression, its first line without indentation.

    Args:
        indent: of the line on which it begins.
        before: characters before it on its first line.
        after: characters that follow it on its last line.
    """
    if fits(expression, before + after):
        return flat(expression)
    return exploded(expression, indent=indent)


def exploded(expression: Expression, *, indent: str) -> str:
    """The expression with each of its parts on a line of its own."""
    inner = indent + INDENT
    match expression:
        case str():
            return expression
        case Prefixed(prefix, of):
            return prefix + exploded(of, indent=indent)
        case Alternatives(members):
            if fits(expression, len(inner)):
                return f"(\n{inner}{flat(expression)}\n{indent})"
            operators = ["", *["| "] * (len(members) - 1)]
            lines = [
                f"{inner}{operator}{laid_out(member, indent=inner, before=len(inner + operator), after=0)}\n"
                for operator, member in zip(operators, members, strict=True)
            ]
            return "(\n" + "".join(lines) + indent + ")"
        case Bracketed(opening, parts, closing, is_subscript):
            # A comma behind the one parameter of a type would make a tuple of it.
            comma = "" if is_subscript and len(parts) == 1 else ","
            lines = [laid_out(part, indent=inner, before=len(inner), after=len(comma)) for part in parts]
            return f"{opening}\n" + "".join(f"{inner}{line}{comma}\n" for line in lines) + indent + closing


def fits(expression: Expression, others: int) -> bool:
    """Whether the expression may stand on one line with `others` more characters."""
    return not _has_wide_values(expression) and len(flat(expression)) + others <= LINE_LENGTH


def _has_wide_values(expression: Expression) -> bool:
    match expression:
        case Bracketed(_, parts, _, is_subscript):
            own = not is_subscript and not flat(expression).isascii()
            return own or any(_has_wide_values(part) for part in parts)
        case Prefixed(_, inner):
            return _has_wide_values(inner)
        case _:
            return False


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    """Numbers inside names count as numbers: `v2` comes before `v10`."""
    parts = re.findall(r"[0-9]+|[^0-9]", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
