"""YAML text into a `Document`: own reader on the events of PyYAML's parsers.

The stock loaders know no positions, take the last of two equal keys, read `yes` as a boolean, and the C loader crashes
on deep nesting. Here every node has its place, scalars follow YAML 1.2 (`yaml_scalars`), and nesting, nodes and alias
expansion are bounded while the events arrive, so hostile files cost little.
"""

import re
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from flashgen.diagnostics import Diagnostic, Label, quote
from flashgen.document import Document, NodePath, Place
from flashgen.errors import SpecError
from flashgen.snippets import split_lines
from flashgen.yaml_messages import SyntaxProblem, explain
from flashgen.yaml_scalars import core_scalar
from flashgen.yaml_text import decode

MAX_DEPTH: Final = 64
MAX_NODES: Final = 200_000

# Nodes that aliases stand for, all together.
MAX_ALIAS_NODES: Final = 10_000

_SURROGATE = re.compile("[\ud800-\udfff]")


class _StopError(Exception):
    """The rest of the file cannot be read."""


def read_document(path: Path, raw: bytes) -> Document:
    """The document that the file `path` with the contents `raw` holds; raises `SpecError`."""
    text = decode(path, raw)
    reader = _Reader(text)
    data = reader.read()
    if reader.problems:
        raise SpecError(reader.problems, path=path, text=text)
    return Document(path=path, text=text, data=data, value_places=reader.value_places, key_places=reader.key_places)


def _parser(text: str) -> Any:
    """libyaml's parser, or PyYAML's own where that was not compiled in; both give the same events."""
    try:
        from yaml._yaml import CParser  # deferred: its absence is no error
    except ImportError:
        return _PurePythonParser(text)
    return CParser(text)


class _PurePythonParser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)


class _Reader:
    """Builds data and places from events; mistakes that let it go on are collected in `problems`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.problems: list[Diagnostic] = []
        self.value_places: dict[NodePath, Place] = {}
        self.key_places: dict[NodePath, Place] = {}
        self._lines = split_lines(text)
        self._events = _parser(text)
        self._nodes = 0
        self._alias_nodes = 0

        # Finished nodes by anchor; `None` while a node is being read.
        self._anchors: dict[str, tuple[Any] | None] = {}

    def read(self) -> Any:
        try:
            return self._document()
        except yaml.MarkedYAMLError as error:
            self.problems.append(explain(self._syntax_problem(error)))
        except _StopError:
            pass
        return None

    def _document(self) -> Any:
        self._next()  # the stream starts
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            self.problems.append(_empty())
            raise _StopError
        data = self._node(self._next(), (), depth=1)
        self._next()  # the document ends
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            self._stop("FG010", "a spec is one YAML document; a second one starts here", self._place(event))
        if data is None and not self.problems:
            self.problems.append(_empty())
        return data

    def _next(self) -> Any:
        return self._events.get_event()

    def _node(self, event: Any, path: NodePath, *, depth: int) -> Any:
        self._count(event, depth)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path, depth=depth)
        if event.tag is not None:
            self._tag(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            data = self._scalar(event, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            data = self._sequence(event, path, depth=depth)
        else:
            data = self._mapping(event, path, depth=depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (data,)
        return data

    def _count(self, event: Any, depth: int) -> None:
        self._nodes += 1
        if depth > MAX_DEPTH:
            self._stop("FG009", f"the file nests deeper than {MAX_DEPTH} levels", self._place(event))
        if self._nodes > MAX_NODES:
            self._stop("FG009", f"the file holds more than {MAX_NODES:,} values", self._place(event))

    def _scalar(self, event: Any, path: NodePath) -> Any:
        place = self._place(event)
        is_empty = place.column == place.end_column
        if is_empty and path in self.key_places:
            place = self.key_places[path]  # `key:` alone has no value to point at
        elif is_empty:
            place = Place(place.line, max(1, place.column - 1), max(2, place.column))
        self.value_places[path] = place
        self._check_surrogates(event.value, place)
        if not event.implicit[0]:
            return event.value
        try:
            return core_scalar(event.value)
        except ValueError as error:
            self.problems.append(
                Diagnostic(code="FG012", message=str(error), place=place, hint="put it in quotes if it is a text")
            )
            return None

    def _sequence(self, event: Any, path: NodePath, *, depth: int) -> list[Any]:
        start = self._place(event)
        items: list[Any] = []
        while not isinstance(item := self._next(), yaml.SequenceEndEvent):
            items.append(self._node(item, (*path, len(items)), depth=depth + 1))
        dash = Place(start.line, start.column, start.column + 1)
        self.value_places[path] = self._flow_place(start, item) if event.flow_style else dash
        return items

    def _mapping(self, event: Any, path: NodePath, *, depth: int) -> dict[str, Any]:
        start = self._place(event)
        first: Place | None = None
        mapping: dict[str, Any] = {}
        places: dict[str, Place] = {}
        while not isinstance(key_event := self._next(), yaml.MappingEndEvent):
            key, place = self._key(key_event, path, depth=depth + 1)
            first = first or place
            entry: NodePath = (*path, key)
            if key in places:
                self._duplicate(key, place, places[key])
                self._node(self._next(), (*path, f"{key} (again)"), depth=depth + 1)
                continue
            places[key] = self.key_places[entry] = place
            mapping[key] = self._node(self._next(), entry, depth=depth + 1)
        self.value_places[path] = self._flow_place(start, key_event) if event.flow_style else first or start
        return mapping

    def _key(self, event: Any, path: NodePath, *, depth: int) -> tuple[str, Place]:
        place = self._place(event)
        if not isinstance(event, yaml.ScalarEvent):
            known = len(self.problems)
            self._node(event, (*path, "(key)"), depth=depth)
            del self.problems[known:]  # what is wrong inside the key says nothing more
            hint = "put a text that begins with `{`, `[` or `*` in quotes"
            self._problem("FG011", "a key must be a text, not a list, a mapping or an alias", place, hint=hint)
            return f"(key {len(self.problems)})", place
        self._count(event, depth)
        if event.tag is not None:
            self._tag(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = (event.value,)
        self._check_surrogates(event.value, place)
        if not event.implicit[0]:
            return str(event.value), place
        self._check_plain_key(event.value, place)
        return str(event.value), place

    def _check_surrogates(self, text: str, place: Place) -> None:
        """Refuses `"\\ud800"`, as libyaml does; PyYAML's own parser lets it pass, and no file can hold it."""
        if not text.isascii() and _SURROGATE.search(text):
            self._problem("FG004", "half of a surrogate pair is not a character", place)

    def _check_plain_key(self, text: str, place: Place) -> None:
        if text == "<<":
            hint = "repeat the keys here, or use an alias for a whole value: `key: *anchor`"
            self._problem("FG007", "the merge key `<<` is not part of YAML 1.2", place, hint=hint)
            return
        try:
            is_text = isinstance(core_scalar(text), str)
        except ValueError:
            is_text = False
        if not is_text:
            found = quote(text) if text else "nothing"
            advice = f'put it in quotes: `"{text}"`' if text else None
            self._problem("FG011", f"a key must be a text, found {found}", place, hint=advice)

    def _alias(self, event: Any, path: NodePath, *, depth: int) -> Any:
        place = self._place(event)
        if event.anchor not in self._anchors:
            hint = "put a text that begins with `*` in quotes"
            self._stop("FG008", f"no anchor `&{event.anchor}` stands above this alias", place, hint=hint)
        finished: tuple[Any] | None = self._anchors[event.anchor]
        if finished is None:
            self._stop("FG008", f"the alias `*{event.anchor}` stands inside its own anchor", place)
        return self._expand(finished[0], path, place, depth=depth)

    def _expand(self, data: Any, path: NodePath, place: Place, *, depth: int) -> Any:
        """A copy of `data` whose places are all the alias."""
        self._alias_nodes += 1
        if self._alias_nodes > MAX_ALIAS_NODES:
            self._stop("FG008", f"aliases stand for more than {MAX_ALIAS_NODES:,} values", place)
        if depth > MAX_DEPTH:
            self._stop("FG009", f"the file nests deeper than {MAX_DEPTH} levels", place)
        self.value_places[path] = place
        if isinstance(data, dict):
            for key in data:
                self.key_places[*path, key] = place
            return {key: self._expand(value, (*path, key), place, depth=depth + 1) for key, value in data.items()}
        if isinstance(data, list):
            return [self._expand(item, (*path, i), place, depth=depth + 1) for i, item in enumerate(data)]
        return data

    def _tag(self, event: Any) -> None:
        start = self._place(event)
        line = self._lines[start.line - 1]
        tag = line[start.column - 1 :].split(maxsplit=1)[0]
        place = Place(start.line, start.column, start.column + len(tag))
        hint = "remove it; put a text that begins with `!` in quotes"
        self._problem("FG006", f"tags are not part of a spec: {quote(tag)}", place, hint=hint)

    def _duplicate(self, key: str, place: Place, first: Place) -> None:
        self.problems.append(
            Diagnostic(
                code="FG005",
                message=f"key {quote(key)} stands twice in this mapping",
                place=place,
                label="again here",
                secondary=(Label(place=first, text="first here"),),
            )
        )

    def _problem(self, code: str, message: str, place: Place, *, hint: str | None = None) -> None:
        self.problems.append(Diagnostic(code=code, message=message, place=place, hint=hint))

    def _stop(self, code: str, message: str, place: Place, *, hint: str | None = None) -> NoReturn:
        self._problem(code, message, place, hint=hint)
        raise _StopError

    def _place(self, event: Any) -> Place:
        """The event's first line; block collections and texts of several lines end with it."""
        start, end = event.start_mark, event.end_mark
        column = start.column + 1
        if end.line == start.line:
            return Place(start.line + 1, column, end.column + 1)
        line = self._lines[start.line].rstrip()
        return Place(start.line + 1, column, max(column + 1, len(line) + 1))

    def _flow_place(self, start: Place, end_event: Any) -> Place:
        end = end_event.end_mark
        if end.line + 1 == start.line:
            return Place(start.line, start.column, end.column + 1)
        return Place(start.line, start.column, max(start.column + 1, len(self._lines[start.line - 1].rstrip()) + 1))

    def _syntax_problem(self, error: yaml.MarkedYAMLError) -> SyntaxProblem:
        mark = error.problem_mark or error.context_mark
        assert mark is not None, "both parsers mark every syntax error"
        line, column = mark.line, mark.column
        at_end = line >= len(self._lines) or not "".join(self._lines[line:])[column:].strip()
        if line >= len(self._lines) or (at_end and column >= len(self._lines[line])):
            line, column = self._last_character()
        context = error.context_mark
        return SyntaxProblem(
            problem=str(error.problem),
            place=Place(line + 1, column + 1, column + 2),
            context_place=Place(context.line + 1, context.column + 1, context.column + 2) if context else None,
            line_text=self._lines[line],
            at_end=at_end,
        )

    def _last_character(self) -> tuple[int, int]:
        line = max((i for i, text in enumerate(self._lines) if text.strip()), default=0)
        return line, max(0, len(self._lines[line].rstrip()) - 1)


def _empty() -> Diagnostic:
    return Diagnostic(code="FG013", message="the spec is empty", place=None, hint="`flashgen init` writes a first spec")
