"""What a build did, or with `--check` would do, to each file of a project."""

from typing import Literal, NamedTuple

# create, update, move, remove: flashgen writes. adopt: the file was there already with just these contents.
# keep: yours. deleted: you deleted it, it stays so. orphan: no longer produced, kept because you edited it.
Word = Literal["create", "update", "move", "adopt", "keep", "remove", "orphan", "deleted"]

_STALE_WORDS = frozenset({"create", "update", "move", "remove"})


class FileChange(NamedTuple):
    """One line of the report; files about which there is nothing to say have none."""

    word: Word
    path: str

    # What the user should know beside the word, or "".
    note: str = ""

    @property
    def is_stale(self) -> bool:
        """Whether the tree differs from what the spec asks for."""
        return self.word in _STALE_WORDS


class WriteReport(NamedTuple):
    """All changes, sorted by path."""

    changes: tuple[FileChange, ...]

    @property
    def is_current(self) -> bool:
        """Whether the project's files are what the spec asks for, apart from the user's own decisions."""
        return not any(change.is_stale for change in self.changes)
