"""Users' mistakes as values, and how they read in a terminal.

The table of codes is `diagnostic_codes`; drawing of source lines is `snippets`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from flashgen.document import Place
from flashgen.snippets import Mark, draw, printable, split_lines

# A broken file of a megabyte has thousands of errors, which nobody reads.
MAX_SHOWN = 100

_MAX_QUOTED = 80


class Label(NamedTuple):
    """A second place of a diagnostic, with what it has to do with the first."""

    place: Place
    text: str


class Diagnostic(NamedTuple):
    """One mistake: what is wrong, where, and what to do."""

    # A key of `diagnostic_codes.CODES`; stable.
    code: str

    # Stands alone: lower case, no full stop, names in backticks.
    message: str

    # `None`: the file as a whole.
    place: Place | None
    severity: Literal["error", "warning"] = "error"
    label: str = ""
    secondary: tuple[Label, ...] = ()

    # Lines of advice; the first stands behind "hint: ".
    hint: str | None = None


def quote(value: object) -> str:
    """A user's value inside a message: in backticks, on one line, cut when long."""
    text = str(value)
    shown = text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 1]}…"
    return f"`{printable(shown)}`"


def in_words(values: Iterable[str], *, last: str = "and") -> str:
    """`a`, `b` and `c`."""
    quoted = [quote(value) for value in values]
    if len(quoted) <= 1:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"


def sort_diagnostics(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """By place, those of the whole file first; equal ones once."""

    def position(diagnostic: Diagnostic) -> tuple[int, int, str, str]:
        place = diagnostic.place or Place(0, 0, 0)
        return place.line, place.column, diagnostic.code, diagnostic.message

    return sorted(dict.fromkeys(diagnostics), key=position)


def render_text(diagnostics: Iterable[Diagnostic], *, path: Path, text: str) -> str:
    """All diagnostics about the file `path` with the contents `text`, and their number; ends in one newline."""
    ordered = sort_diagnostics(diagnostics)
    lines = split_lines(text)
    blocks = [_block(diagnostic, path, lines) for diagnostic in ordered[:MAX_SHOWN]]
    return "\n\n".join([*blocks, _count(ordered)]) + "\n"


def _block(diagnostic: Diagnostic, path: Path, lines: list[str]) -> str:
    place = diagnostic.place
    head = f"{diagnostic.severity}[{diagnostic.code}]: {printable(diagnostic.message)}"
    shown_path = printable(str(path))
    if place is None:
        block = [head, f" --> {shown_path}"]
    else:
        marks = [Mark(place, "^", diagnostic.label)]
        marks += [Mark(label.place, "-", label.text) for label in diagnostic.secondary]
        drawing = draw(lines, marks)
        indent = drawing[0].index("|") - 1
        block = [head, f"{'':{indent}}--> {shown_path}:{place.line}:{place.column}", *drawing]
    if diagnostic.hint:
        block += ["", *(printable(line) for line in f"hint: {diagnostic.hint}".split("\n"))]
    return "\n".join(block)


def _count(ordered: list[Diagnostic]) -> str:
    counts = []
    for severity in ("error", "warning"):
        number = sum(diagnostic.severity == severity for diagnostic in ordered)
        if number:
            counts.append(f"{number} {severity}{'s' if number > 1 else ''}")
    suffix = f" (the first {MAX_SHOWN} are shown)" if len(ordered) > MAX_SHOWN else ""
    return ", ".join(counts) + suffix
