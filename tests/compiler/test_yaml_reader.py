"""`flashgen.yaml_reader` and `stages.load`: values as YAML 1.2 reads them, places, bad files."""

import time
from pathlib import Path
from typing import Any

import pytest

from flashgen import yaml_reader
from flashgen.diagnostics import render_text
from flashgen.document import Document, Place
from flashgen.errors import SpecError, UsageError
from flashgen.stages.load import load
from flashgen.yaml_reader import MAX_DEPTH, read_document
from flashgen.yaml_text import MAX_BYTES

PATH = Path("spec.yaml")


def read(text: str) -> Document:
    return read_document(PATH, text.encode("utf-8"))


def refuse(raw: bytes) -> SpecError:
    with pytest.raises(SpecError) as caught:
        read_document(PATH, raw)
    return caught.value


@pytest.fixture(params=["libyaml", "pure Python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of PyYAML's parsers: the second one is used where libyaml was not compiled in."""
    if request.param == "pure Python":
        monkeypatch.setattr(yaml_reader, "_parser", yaml_reader._PurePythonParser)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("null", None),
        ("~", None),
        ("", None),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("-7", -7),
        ("+7", 7),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("3.10", 3.1),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("16GB", "16GB"),
        ("cuda:0", "cuda:0"),
        ("-", None),
        ("=", "="),
        ("'true'", "true"),
        ('"1"', "1"),
        ('"\\u263a"', "☺"),
    ],
)
@pytest.mark.usefixtures("parser")
def test_scalars_follow_yaml_1_2(written: str, value: Any) -> None:
    """Only `true` and `false` are booleans, leading zeros mean nothing, times and dates are texts."""
    data = read(f"key: {written}\n").data if written != "-" else {"key": None}

    assert data == {"key": value}
    assert type(data["key"]) is type(value)


@pytest.mark.usefixtures("parser")
def test_every_node_has_a_place() -> None:
    """Keys, values, list items and flow collections are found by path; a block mapping is marked at its first key."""
    document = read("a:\n  - b: [1, 22]\n    模型: 'x y'\n")

    assert document.key_places == {
        ("a",): Place(1, 1, 2),
        ("a", 0, "b"): Place(2, 5, 6),
        ("a", 0, "模型"): Place(3, 5, 7),
    }
    assert document.value_places == {
        (): Place(1, 1, 2),
        ("a",): Place(2, 3, 4),
        ("a", 0): Place(2, 5, 6),
        ("a", 0, "b"): Place(2, 8, 15),
        ("a", 0, "b", 0): Place(2, 9, 10),
        ("a", 0, "b", 1): Place(2, 12, 14),
        ("a", 0, "模型"): Place(3, 9, 14),
    }


def test_a_value_that_is_missing_is_marked_at_its_key() -> None:
    """`key:` alone has nothing else to point at."""
    document = read("key:\n")

    assert document.value_places["key",] == Place(1, 1, 4)


def test_values_behind_an_alias_are_marked_at_the_alias() -> None:
    """What is wrong there is wrong because of the alias, and the copies share nothing."""
    document = read("x: &a {n: [1]}\ny: *a\n")

    assert document.data["y"] == {"n": [1]}
    assert document.data["y"]["n"] is not document.data["x"]["n"]
    assert document.value_places["y", "n", 0] == document.key_places["y", "n"] == Place(2, 4, 6)


def test_byte_order_mark_and_windows_line_ends_do_not_shift_places() -> None:
    """A file from a Windows editor reads like any other."""
    document = read("\ufeffa: 1\r\nb: 2\r\n")

    assert document.data == {"a": 1, "b": 2}
    assert document.value_places["b",] == Place(2, 4, 5)


def test_line_separators_in_quoted_text_are_kept() -> None:
    """U+2028 is a line break for libyaml; the text and the lines below it stay right."""
    document = read('a: "x\u2028y"\nb: 1\n')

    assert document.data == {"a": "x\u2028y", "b": 1}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: 1\na: 2\n", "FG005"),
        ("a: {b: 1, b: 2}\n", "FG005"),
        ("a: !!int '1'\n", "FG006"),
        ("a: !custom {}\n", "FG006"),
        ("a: {<<: {b: 1}}\n", "FG007"),
        ("a: *b\n", "FG008"),
        ("a: &a {b: *a}\n", "FG008"),
        ("a: 1\n---\nb: 1\n", "FG010"),
        ("1: a\n", "FG011"),
        ("{a: b}: c\n", "FG011"),
        ("*a : c\n", "FG011"),
        ("a: .nan\n", "FG012"),
        ("a: -.INF\n", "FG012"),
        (f"a: {'9' * 5000}\n", "FG012"),
        ("", "FG013"),
        ("---\n", "FG013"),
        ('a: "\\ud800"\n', "FG004"),
    ],
)
@pytest.mark.usefixtures("parser")
def test_what_a_spec_cannot_hold(text: str, code: str) -> None:
    """One diagnostic with its own code, the same from both parsers."""
    if text.startswith("*"):
        text = f"x: &a y\n{text}"

    error = refuse(text.encode())

    assert [diagnostic.code for diagnostic in error.diagnostics] == [code]


def test_all_mistakes_of_a_file_are_reported_at_once() -> None:
    """Only a syntax error ends the reading."""
    error = refuse(b"a: 1\na: 2\nb: !x 1\n2: c\nd: [\n")

    assert [diagnostic.code for diagnostic in error.diagnostics] == ["FG005", "FG006", "FG011", "FG004"]


SYNTAX_ERRORS = [
    "a: b: c",
    "a:\n  - b\n c: d",
    "a: [1, 2",
    "a: {b: c",
    "a: {b: list[dict]}",
    "\ta: b",
    "a:\n\t- b",
    "a: 'x",
    'a: "x',
    'a: "\\q"',
    'a: "\\xzz"',
    "a: @x",
    "a: `x",
    "a: %x",
    "a: - b",
    "- a\nb: c",
    "a: b\n- c",
    "a: *",
    "a: &",
    "a: | x\n b",
    "a: |0\n b",
    "%YAML 3.0\n---\na",
    "%TAG x\n---\na",
    "a: !foo!bar x",
    "? a\nb",
    "a\nb: c",
    "a: 'b' c",
    "a: }",
    "{a: 1,, b: 2}",
    "a: b\n...\nb: c",
    "a: !<x",
    "a: 'x\n---\n'",
    ": x",
    "a: {b: c}}",
]


@pytest.mark.parametrize("text", SYNTAX_ERRORS)
@pytest.mark.usefixtures("parser")
def test_syntax_errors_are_in_plain_words(text: str) -> None:
    """No parser state reaches the user: not "block mapping", "token", "scalar", "context" or "expected <block end>"."""
    (diagnostic,) = refuse(text.encode()).diagnostics

    assert diagnostic.code == "FG004"
    for jargon in ("token", "scalar", "context", "flow", "<", "did not find", "not valid YAML:"):
        assert jargon not in diagnostic.message


@pytest.mark.parametrize(
    ("raw", "code", "words"),
    [
        (b"a: \xff\n", "FG001", "byte 0xff in line 1"),
        ("a: b\n".encode("utf-16"), "FG001", "UTF-16"),
        (b"\x7fELF\0\0", "FG002", "control character"),
        (b"a\0", "FG002", "NUL"),
        (b"a: \x1b[31m\n", "FG002", "U+001B"),
        (b"a: x\xc2\x85y\n", "FG002", "U+0085"),
        (b"a: " + b"x" * MAX_BYTES, "FG003", "1 MiB"),
    ],
)
def test_files_that_are_no_text(raw: bytes, code: str, words: str) -> None:
    """One clear diagnostic."""
    error = refuse(raw)

    assert [diagnostic.code for diagnostic in error.diagnostics] == [code]
    assert words in render_text(error.diagnostics, path=PATH, text=error.text)


def test_depth_has_a_limit() -> None:
    """The deepest file that may be read, and the next one."""
    deepest = MAX_DEPTH - 1

    assert read(f"a: {'[' * (deepest - 1)}{']' * (deepest - 1)}\n").data
    assert refuse(f"a: {'[' * deepest}1{']' * deepest}\n".encode()).diagnostics[0].code == "FG009"


HOSTILE = {
    "nested lists": b"[" * 50_000,
    "nested mappings": b"{a: " * 50_000,
    "nested blocks": b"- " * 50_000,
    "nested keys": b"? " * 50_000,
    "aliases of aliases": b"a: &a [1,1,1,1,1,1,1,1,1]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 107)),
    "unclosed quote": b'a: "' + b"x\n" * 500_000,
    "unknown aliases": b"- *a\n" * 200_000,
    "tags": b"- ! x\n" * 100_000,
    "tabs": b"\t" * 1_000_000,
    "anchors": b"- &a x\n" * 100_000,
    "colons": b": " * 500_000,
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_cost_little(raw: bytes) -> None:
    """They end in diagnostics, not in a crash, and no work grows with the square of the size."""
    start = time.process_time()
    try:
        read_document(PATH, raw)
    except SpecError as error:
        render_text(error.diagnostics, path=PATH, text=error.text)

    # Quadratic work on these takes minutes; linear work half a second on a slow machine.
    assert time.process_time() - start < 10


def test_a_missing_file_is_bad_usage(tmp_path: Path) -> None:
    """The command line names something that is not there, or not a file."""
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "flashgen.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "a\0b")


def test_load_reads_the_file(tmp_path: Path) -> None:
    """The document knows its path as the user wrote it, and its text."""
    path = tmp_path / "flashgen.yaml"
    path.write_text("name: chat\n", encoding="utf-8")

    document = load(path)

    assert (document.path, document.text, document.data) == (path, "name: chat\n", {"name": "chat"})
