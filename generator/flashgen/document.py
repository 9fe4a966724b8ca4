"""A parsed YAML file: plain data plus the line and column of every node."""

from pathlib import Path
from typing import Any, NamedTuple

# What a YAML scalar can be.
Scalar = str | int | float | bool | None

# Keys and list indices from the root to a node.
NodePath = tuple[str | int, ...]


class Place(NamedTuple):
    """A range of one line; line and columns start at 1, `end_column` is exclusive."""

    line: int
    column: int
    end_column: int


class Document(NamedTuple):
    """What `stages.load` gives."""

    # As the user named it; diagnostics show it.
    path: Path
    text: str
    data: Any

    # Of every node, by path; for an entry of a mapping the value's place.
    value_places: dict[NodePath, Place]

    # Of every entry of a mapping, by the entry's path: its key's place.
    key_places: dict[NodePath, Place]
