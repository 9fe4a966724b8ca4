"""Keeps every output inside the project: which relative paths are safe on every system."""

import re

# Names that Windows gives to devices, whatever their ending.
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{digit}" for digit in "123456789"), *(f"lpt{digit}" for digit in "123456789")}
)
_FORBIDDEN = re.compile(r'[\x00-\x1f\\:*?"<>|]')


def path_problem(path: str) -> str | None:
    """Why `path` (relative, with "/") must not be written, or `None`."""
    if not path or path.startswith("/"):
        return "is not relative"
    if _FORBIDDEN.search(path):
        return "holds a character that file names cannot have everywhere"
    for part in path.split("/"):
        if part in {"", ".", ".."}:
            return "is not in its shortest form inside the project"
        if part.split(".")[0].lower() in _RESERVED:
            return f"uses `{part}`, a device name on Windows"
        if part.endswith((".", " ")):
            return "has a part that ends in a dot or a space"
    if path.split("/")[0].lower() in {".flashgen", ".git"}:
        return "lies in a folder that is not the blueprint's"
    return None
