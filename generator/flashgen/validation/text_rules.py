"""Control characters in texts.

Free text may hold anything that can be printed, with line breaks and tabs; names and other short values no line break.
"""

import re
from typing import Any

from flashgen.document import NodePath
from flashgen.validation.problems import Problems

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

# Keys whose texts may have several lines.
_FREE_TEXT = frozenset({"description", "chat_template", "env", "stop", "default", "example", "enum"})
_ALLOWED_IN_FREE_TEXT = "\n\t"


def check_texts(data: Any, problems: Problems) -> None:
    """Reports every text with a character that no output could hold or that nobody can see, and marks it as broken."""
    _check(data, (), problems, is_free=False)


def _check(value: Any, path: NodePath, problems: Problems, *, is_free: bool) -> None:
    if path in problems.broken:
        return
    if isinstance(value, str):
        found = _control_character(value, is_free=is_free)
        if found is not None:
            problems.at_value(path, "FG231", f"this text holds {found}")
            problems.broken.add(path)
    elif isinstance(value, dict):
        for key, child in value.items():
            if key.startswith("x-") and path[-1:] != ("models",):
                continue
            if _CONTROL.search(key) and (*path, key) not in problems.broken:
                problems.at_key((*path, key), "FG231", f"this key holds {_control_character(key, is_free=False)}")
                problems.broken.add((*path, key))
            _check(child, (*path, key), problems, is_free=is_free or key in _FREE_TEXT)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, (*path, index), problems, is_free=is_free)


def _control_character(text: str, *, is_free: bool) -> str | None:
    for match in _CONTROL.finditer(text):
        character = match[0]
        if is_free and character in _ALLOWED_IN_FREE_TEXT:
            continue
        return "a line break" if character == "\n" else f"the control character U+{ord(character):04X}"
    return None
