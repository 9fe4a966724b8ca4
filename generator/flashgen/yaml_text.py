"""The bytes of a file as text that a YAML parser may see: UTF-8, not too long, nothing that cannot be printed."""

import re
from pathlib import Path
from typing import Final

from flashgen.diagnostics import Diagnostic
from flashgen.document import Place
from flashgen.errors import SpecError
from flashgen.snippets import split_lines

MAX_BYTES: Final = 1 << 20

# All but YAML's printable characters, and U+0085, which libyaml takes for a line break. Decoded text has no surrogates.
# NOTE: the complement, a short list, compiles in a tenth of the time that the list of printable characters takes.
_NOT_PRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


def decode(path: Path, raw: bytes) -> str:
    """The text, without a byte order mark; raises `SpecError` with the first thing that is wrong."""
    if len(raw) > MAX_BYTES:
        raise SpecError(
            [Diagnostic(code="FG003", message="the file is larger than 1 MiB", place=None)], path=path, text=""
        )
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise SpecError([_not_utf8(raw, error.start)], path=path, text="") from error
    if match := _NOT_PRINTABLE.search(text):
        raise SpecError([_control_character(text, match.start())], path=path, text=text)
    return text


def _not_utf8(raw: bytes, offset: int) -> Diagnostic:
    line = raw.count(b"\n", 0, offset) + 1
    message = f"the file is not UTF-8: byte 0x{raw[offset]:02x} in line {line} cannot be read"
    is_utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    hint = "it looks like UTF-16; save it as UTF-8" if is_utf16 else "save it as UTF-8"
    return Diagnostic(code="FG001", message=message, place=None, hint=hint)


def _control_character(text: str, offset: int) -> Diagnostic:
    lines = split_lines(text[:offset])
    place = Place(len(lines), len(lines[-1]) + 1, len(lines[-1]) + 2)
    code = ord(text[offset])
    if code == 0:
        return Diagnostic(code="FG002", message="the file holds a NUL byte: it is not a text", place=place)
    escape = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    message = f"the control character U+{code:04X} cannot stand in a YAML file"
    return Diagnostic(
        code="FG002", message=message, place=place, hint=f"remove it, or write `{escape}` in a double-quoted text"
    )
