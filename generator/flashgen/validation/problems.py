"""Collects the diagnostics of one validation; rules name nodes by path, never by line."""

from flashgen.diagnostics import Diagnostic, Label
from flashgen.document import Document, NodePath, Place
from flashgen.snippets import split_lines


class Problems:
    """Everything that is wrong so far, and which nodes later rules must not look at."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.diagnostics: list[Diagnostic] = []
        self._lines = split_lines(document.text)

        # Nodes whose structure is wrong.
        self.broken: set[NodePath] = set()

    def at_value(
        self,
        path: NodePath,
        code: str,
        message: str,
        *,
        label: str = "",
        other: tuple[NodePath, str] | None = None,
        hint: str | None = None,
    ) -> None:
        """A mistake in a value; `other` is a second value that it clashes with, and its label."""
        secondary = (Label(place=self.value_place(other[0]), text=other[1]),) if other else ()
        self._add(code, message, self.value_place(path), label=label, secondary=secondary, hint=hint)

    def at_key(self, path: NodePath, code: str, message: str, *, label: str = "", hint: str | None = None) -> None:
        """A mistake in a key, or in a whole mapping that the key names."""
        self._add(code, message, self.key_place(path), label=label, hint=hint)

    def at_place(self, place: Place, code: str, message: str, *, hint: str | None = None) -> None:
        """A mistake in a part of a value."""
        self._add(code, message, place, hint=hint)

    def value_place(self, path: NodePath) -> Place:
        """The place of a value; of its nearest ancestor when the value is not in the file."""
        while path and path not in self.document.value_places:
            path = path[:-1]
        return self.document.value_places[path]

    def key_place(self, path: NodePath) -> Place:
        """The place of an entry's key; for a list's item, that of the item."""
        return self.document.key_places.get(path) or self.value_place(path)

    def written(self, path: NodePath) -> str:
        """A value as it stands in the file, its first line: `3.10`, which YAML reads as 3.1."""
        place = self.value_place(path)
        return self._lines[place.line - 1][place.column - 1 : place.end_column - 1]

    def _add(
        self,
        code: str,
        message: str,
        place: Place,
        *,
        label: str = "",
        secondary: tuple[Label, ...] = (),
        hint: str | None = None,
    ) -> None:
        self.diagnostics.append(
            Diagnostic(code=code, message=message, place=place, label=label, secondary=secondary, hint=hint)
        )
