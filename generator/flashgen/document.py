"""A parsed YAML file: plain data plus the line and column of every node."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a YAML scalar can be.
Scalar = str | int | float | bool | None

# Keys and list indices from the root to a node.
NodePath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A range of one line; line and columns start at 1, `end_column` is exclusive."""

    line: int
    column: int
    end_column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What `stages.load` gives."""

    # As the user named it; diagnostics show it.
    path: Path
    text: str
    data: Any

    # Of every node, by path; for an entry of a mapping the value's place.
    value_places: dict[NodePath, Place]

    # Of every entry of a mapping, by the entry's path: its key's place.
    key_places: dict[NodePath, Place]
