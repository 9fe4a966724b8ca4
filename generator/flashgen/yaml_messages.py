"""YAML syntax errors in plain words.

libyaml and PyYAML's own parser say different things about the same mistake ("did not find expected key", "expected
<block end>, but found '<scalar>'"), and both speak of parser states. Each rule here covers both.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from flashgen.diagnostics import Diagnostic, Label, quote
from flashgen.document import Place


class SyntaxProblem(NamedTuple):
    """What the parser reports; places are single characters."""

    problem: str
    place: Place

    # Where the construct began that the parser was in.
    context_place: Place | None

    # The line of `place`, and whether the file ends there.
    line_text: str
    at_end: bool

    @property
    def character(self) -> str:
        """The one at `place`; "" at the end of a line."""
        return self.line_text[self.place.column - 1 : self.place.column]

    @property
    def begins_line(self) -> bool:
        return not self.line_text[: self.place.column - 1].strip()


_Explanation = Callable[[SyntaxProblem], Diagnostic]


def explain(problem: SyntaxProblem) -> Diagnostic:
    """The diagnostic for a syntax error."""
    for pattern, explanation in _RULES:
        if pattern.search(problem.problem):
            return explanation(problem)
    return _syntax(problem, f"this is not valid YAML: {problem.problem}")


def _syntax(
    problem: SyntaxProblem,
    message: str,
    *,
    hint: str | None = None,
    at_context: bool = False,
    began: str | None = None,
) -> Diagnostic:
    """`at_context` points at the start of the construct; `began` labels that start as a second place."""
    context = problem.context_place
    secondary = (Label(place=context, text=began),) if began and context and context.line != problem.place.line else ()
    return Diagnostic(
        code="FG004",
        message=message,
        place=context if at_context and context else problem.place,
        secondary=secondary,
        hint=hint,
    )


def _colon(problem: SyntaxProblem) -> Diagnostic:
    hint = "put a text that holds `: ` in quotes; a nested mapping starts on a line of its own, indented further"
    return _syntax(problem, "a mapping cannot start here: unexpected `:`", hint=hint)


def _bad_start(problem: SyntaxProblem) -> Diagnostic:
    if problem.character == "\t":
        return _syntax(problem, "a tab cannot indent a line", hint="indent with spaces")
    shown = "a backtick" if problem.character == "`" else quote(problem.character)
    message = f"a text without quotes cannot start with {shown}"
    return _syntax(problem, message, hint="put the text in quotes")


def _open_quote(problem: SyntaxProblem) -> Diagnostic:
    return _syntax(problem, "this quoted text is never closed", at_context=True)


def _flow(closing: str) -> _Explanation:
    opening = {"]": "[", "}": "{"}[closing]

    def explanation(problem: SyntaxProblem) -> Diagnostic:
        if problem.at_end:
            return _syntax(problem, f"this `{opening}` is never closed", at_context=True)
        found = quote(problem.character) if problem.character else "the end of the line"
        hint = f"inside `{opening}…{closing}` a text that holds any of `[]{{}},` needs quotes"
        return _syntax(problem, f"expected `,` or `{closing}`, found {found}", hint=hint)

    return explanation


def _escape(problem: SyntaxProblem) -> Diagnostic:
    hint = "in double quotes write `\\\\` for a backslash; single quotes take it as it is"
    return _syntax(problem, "this is not an escape that YAML knows", hint=hint)


def _dash(problem: SyntaxProblem) -> Diagnostic:
    return _syntax(problem, "a list cannot start here: unexpected `-`", hint="start the list on a line of its own")


def _misfit(collection: str, sameness: str) -> _Explanation:
    def explanation(problem: SyntaxProblem) -> Diagnostic:
        if problem.character == ":":
            return _syntax(problem, "expected a key before `:`")
        if not problem.begins_line:
            found = f"unexpected {quote(problem.character)} after the value"
            return _syntax(problem, found, hint="put the whole text in quotes")
        message = f"this line does not belong to the {collection} above it"
        return _syntax(problem, message, hint=sameness, began=f"the {collection} begins here")

    return explanation


def _no_colon(problem: SyntaxProblem) -> Diagnostic:
    return _syntax(problem, "expected `:` after this key", at_context=True)


def _no_name(problem: SyntaxProblem) -> Diagnostic:
    hint = "put a text that begins with `*` or `&` in quotes"
    return _syntax(problem, "`*` and `&` need the name of an anchor", at_context=True, hint=hint)


def _block_header(problem: SyntaxProblem) -> Diagnostic:
    hint = "the text starts on the next line; put a text that begins with `|` or `>` in quotes"
    return _syntax(problem, "unexpected text behind `|` or `>`", hint=hint)


def _no_value(problem: SyntaxProblem) -> Diagnostic:
    found = quote(problem.character) if problem.character else "nothing"
    return _syntax(problem, f"expected a value, found {found}")


def _directive(problem: SyntaxProblem) -> Diagnostic:
    return _syntax(problem, "directives (`%…`) are not part of a spec", hint="remove the line")


def _tag(problem: SyntaxProblem) -> Diagnostic:
    return _syntax(problem, "this tag is not valid YAML", hint="put a text that begins with `!` in quotes")


def _after_end(problem: SyntaxProblem) -> Diagnostic:
    return _syntax(problem, "unexpected text after the end of the document")


_RULES: tuple[tuple[re.Pattern[str], _Explanation], ...] = tuple(
    (re.compile(pattern), explanation)
    for pattern, explanation in (
        (r"mapping (values|keys) are not allowed", _colon),
        (r"cannot start any token", _bad_start),
        (r"unexpected end of stream|unexpected document (indicator|separator)", _open_quote),
        (r"',' or '\]'", _flow("]")),
        (r"',' or '\}'", _flow("}")),
        (r"escape|hexdecimal|hexadecimal", _escape),
        (r"sequence entries are not allowed", _dash),
        (r"<document start>", _after_end),
        (r"expected '-' indicator", _misfit("list", "entries of one list start in the same column")),
        (r"expected key|<block end>", _misfit("mapping", "keys of one mapping start in the same column")),
        (r"expected ':'", _no_colon),
        (r"alphabetic or numeric", _no_name),
        (r"line break|chomping|indentation indicator", _block_header),
        (r"node content", _no_value),
        (r"directive|incompatible YAML|expected '!'", _directive),
        (r"tag|'>'|URI", _tag),
    )
)
