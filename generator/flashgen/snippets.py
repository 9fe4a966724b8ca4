"""Lines of a source file with marks under them, aligned and harmless on any terminal.

Tabs become four spaces, wide characters take two columns, control characters and direction overrides are shown as
pictures, and of a very long line only the part around the mark is shown.
"""

import re
import unicodedata
from typing import NamedTuple

from flashgen.document import Place

# The line breaks of YAML 1.1, by which libyaml counts.
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")

# Longer lines are cut to this window, of which so much lies before the mark.
_WINDOW = 120
_BEFORE_MARK = 40

_TAB = "    "
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Mark(NamedTuple):
    """A place with the character that underlines it and a text behind that."""

    place: Place
    sign: str
    label: str


def split_lines(text: str) -> list[str]:
    """The lines of a text as the YAML reader counts them."""
    return _LINE_BREAK.split(text)


def printable(text: str) -> str:
    """`text` on one line, without anything that steers a terminal."""
    return "".join(" " if character == "\t" else _shown(character) for character in text)


def draw(lines: list[str], marks: list[Mark]) -> list[str]:
    """The lines that hold marks, each followed by its marks, with line numbers and a bar at the left.

       |
    14 |     model: chta
       |            ^^^^ used by api `completions`
    """
    marks = sorted(marks, key=lambda mark: (mark.place.line, mark.place.column))
    gutter = len(str(marks[-1].place.line))
    drawn = [f"{'':{gutter}} |"]
    previous: int | None = None
    for mark in marks:
        source = lines[mark.place.line - 1] if mark.place.line <= len(lines) else ""
        if mark.place.line != previous or len(source) > _WINDOW:
            if previous is not None and mark.place.line > previous + 1:
                drawn.append("...")
            previous = mark.place.line
            drawn.append(f"{mark.place.line:>{gutter}} | {_visible(source, mark.place)}".rstrip())
        drawn.append(f"{'':{gutter}} | {_underline(source, mark)}".rstrip())
    return drawn


def _visible(source: str, place: Place) -> str:
    begin, end = _window(source, place)
    before = "…" if begin else ""
    after = "…" if end < len(source) else ""
    return before + "".join(_cells(character) for character in source[begin:end]) + after


def _underline(source: str, mark: Mark) -> str:
    begin, end = _window(source, mark.place)
    start = mark.place.column - 1
    indent = _width(source[begin:start]) + (1 if begin else 0)
    length = max(1, _width(source[start : min(mark.place.end_column - 1, end)]))
    return f"{' ' * indent}{mark.sign * length} {printable(mark.label)}"


def _window(source: str, place: Place) -> tuple[int, int]:
    if len(source) <= _WINDOW:
        return 0, len(source)
    begin = max(0, place.column - 1 - _BEFORE_MARK)
    return begin, min(len(source), begin + _WINDOW)


def _width(text: str) -> int:
    return sum(_character_width(character) for cell in map(_cells, text) for character in cell)


def _cells(character: str) -> str:
    return _TAB if character == "\t" else _shown(character)


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # control pictures: ␀ … ␟
    if code == 0x7F:
        return "\N{SYMBOL FOR DELETE}"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return _REPLACEMENT
    return character
