"""`flashgen.diagnostics`: how mistakes read in a terminal."""

from pathlib import Path

from flashgen.diagnostic_codes import CODES, reference_page
from flashgen.diagnostics import MAX_SHOWN, Diagnostic, Label, in_words, quote, render_text
from flashgen.document import Place

PATH = Path("spec.yaml")
REPOSITORY = Path(__file__).parents[2]


def diagnostic(line: int, column: int, end_column: int, *, message: str = "wrong", label: str = "") -> Diagnostic:
    return Diagnostic(code="FG103", message=message, place=Place(line, column, end_column), label=label)


def test_the_form_is_that_of_the_style_guide() -> None:
    """Message, place, line with carets and label, hint after a blank line, count."""
    text = "\n" * 13 + "    model: chta\n"
    mistake = Diagnostic(
        code="FG103",
        message="model `chta` is not defined",
        place=Place(14, 12, 16),
        label="used by api `completions`",
        hint="defined models are `chat` and `embed`",
    )

    assert render_text([mistake], path=PATH, text=text) == (
        "error[FG103]: model `chta` is not defined\n"
        "  --> spec.yaml:14:12\n"
        "   |\n"
        "14 |     model: chta\n"
        "   |            ^^^^ used by api `completions`\n"
        "\n"
        "hint: defined models are `chat` and `embed`\n"
        "\n"
        "1 error\n"
    )


def test_a_second_place_is_underlined_with_dashes() -> None:
    """Lines stand in the order of the file; dots where lines between them are left out."""
    mistake = Diagnostic(
        code="FG005",
        message="twice",
        place=Place(4, 1, 2),
        label="again here",
        secondary=(Label(place=Place(1, 1, 2), text="first here"),),
    )

    assert render_text([mistake], path=PATH, text="a: 1\nb: 2\nc: 3\na: 4\n") == (
        "error[FG005]: twice\n"
        " --> spec.yaml:4:1\n"
        "  |\n"
        "1 | a: 1\n"
        "  | - first here\n"
        "...\n"
        "4 | a: 4\n"
        "  | ^ again here\n"
        "\n"
        "1 error\n"
    )


def test_a_mistake_of_the_whole_file_names_the_file() -> None:
    """There is no line to show."""
    mistake = Diagnostic(code="FG013", message="the spec is empty", place=None, hint="one\ntwo")

    rendered = render_text([mistake], path=PATH, text="")

    assert rendered == "error[FG013]: the spec is empty\n --> spec.yaml\n\nhint: one\ntwo\n\n1 error\n"


def test_mistakes_are_sorted_by_place_and_said_once() -> None:
    """Rules find them in any order, and two rules may find the same one."""
    later, sooner = diagnostic(2, 1, 2, message="later"), diagnostic(1, 1, 2, message="sooner")

    rendered = render_text([later, sooner, later], path=PATH, text="a\nb\n")

    assert rendered.index("sooner") < rendered.index("later")
    assert rendered.endswith("\n2 errors\n")


def test_carets_stand_below_wide_characters_and_tabs() -> None:
    """A tab takes four columns, a wide character two, a combining one none."""
    text = "\t模型e\u0301: chta\n"

    lines = render_text([diagnostic(1, 8, 12)], path=PATH, text=text).splitlines()

    assert lines[3] == "1 |     模型e\u0301: chta"
    assert lines[4] == "  |            ^^^^"


def test_long_lines_are_cut_around_the_mark() -> None:
    """A line of a megabyte does not fill the terminal."""
    text = "a" * 5000 + "HERE" + "b" * 5000

    lines = render_text([diagnostic(1, 5001, 5005)], path=PATH, text=text).splitlines()

    assert len(lines[3]) < 130
    assert lines[3].startswith("1 | …a")
    assert lines[3].endswith("b…")
    assert lines[4].index("^") == lines[3].index("HERE")


def test_nothing_steers_the_terminal() -> None:
    """Control characters and direction overrides in the file, its name or a message are shown as pictures."""
    text = "a: \x1b[31m \u202e \x7f\n"
    mistake = diagnostic(1, 4, 5, message=f"found {quote(chr(27))}", label="\x07")

    rendered = render_text([mistake], path=Path("\x1b]0;x.yaml"), text=text)

    assert not any(ord(character) < 0x20 and character != "\n" for character in rendered)
    assert "\u202e" not in rendered
    assert "␛[31m" in rendered


def test_a_flood_of_mistakes_is_cut() -> None:
    """The count says so."""
    mistakes = [diagnostic(line, 1, 2) for line in range(1, MAX_SHOWN + 51)]

    rendered = render_text(mistakes, path=PATH, text="a\n" * 200)

    assert rendered.count("error[") == MAX_SHOWN
    assert rendered.endswith("\n150 errors (the first 100 are shown)\n")


def test_errors_and_warnings_are_counted_apart() -> None:
    """Only errors make a spec wrong."""
    warning = Diagnostic(code="FG207", severity="warning", message="unused", place=None)

    rendered = render_text([warning, diagnostic(1, 1, 2)], path=PATH, text="a\n")

    assert rendered.startswith("warning[FG207]: unused\n")
    assert rendered.endswith("\n1 error, 1 warning\n")


def test_values_in_messages_are_short_and_on_one_line() -> None:
    """Users' values may be long and hold anything."""
    assert quote("a\nb") == "`a␊b`"
    assert len(quote("x" * 1000)) < 90
    assert in_words(["a"]) == "`a`"
    assert in_words(["a", "b", "c"], last="or") == "`a`, `b` or `c`"


def test_every_code_in_the_sources_is_in_the_table() -> None:
    """A code without a meaning, or one that nothing uses any more, is a mistake."""
    sources = "".join(path.read_text("utf-8") for path in (REPOSITORY / "generator").rglob("*.py"))
    sources = sources.replace((REPOSITORY / "generator/flashgen/diagnostic_codes.py").read_text("utf-8"), "")
    used = {
        sources[i + 1 : i + 6] for i in range(len(sources)) if sources.startswith('"FG', i) and sources[i + 6] == '"'
    }

    assert used == set(CODES)


def test_the_reference_page_is_the_table() -> None:
    """`docs/reference/diagnostics.md` is written by `reference_page`."""
    page = (REPOSITORY / "docs/reference/diagnostics.md").read_text("utf-8")

    assert page == reference_page()
