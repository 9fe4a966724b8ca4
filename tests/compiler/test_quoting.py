import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flashgen import quoting
from flashgen.user_text import UserText
from flashgen.yaml_reader import read_document
from tests.compiler.hostile import HOSTILE

# Surrogates cannot be written to a file at all; the reader of specs refuses them.
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def yaml_12(source: str) -> object:
    return read_document(Path("x.yaml"), f"key: {source}\n".encode()).data["key"]


def yaml_11(source: str) -> object:
    return yaml.safe_load(f"key: {source}\n")["key"]


READERS: dict[str, tuple[Callable[[object], str], Callable[[str], object]]] = {
    "python": (quoting.py, ast.literal_eval),
    "yaml 1.1": (quoting.yaml, yaml_11),
    "yaml 1.2": (quoting.yaml, yaml_12),
    "json": (quoting.json_value, json.loads),
    "toml": (quoting.toml, lambda source: tomllib.loads(f"key = {source}\n")["key"]),
    "compose": (quoting.compose, lambda source: str(yaml_11(source)).replace("$$", "$")),
    "kubernetes": (quoting.k8s_env, lambda source: expanded_by_kubernetes(str(yaml_11(source)))),
}


def expanded_by_kubernetes(text: str) -> str:
    """As the kubelet reads `env`: `$$` is a dollar, `$(NAME)` a variable."""
    return re.sub(r"\$(\$|\(\w+\))", lambda found: "$" if found[1] == "$" else "EXPANDED", text)


@pytest.mark.parametrize("language", READERS)
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_read_back_as_it_was(language: str, text: str) -> None:
    """Whatever a user writes stays that text in each language."""
    quote, read = READERS[language]

    source = quote(UserText(text))

    assert "\n" not in source
    assert read(source) == text


@pytest.mark.parametrize("language", READERS)
@given(text=TEXTS)
def test_any_text_is_read_back_as_it_was(language: str, text: str) -> None:
    """The same for random texts."""
    quote, read = READERS[language]

    assert read(quote(text)) == text


@pytest.mark.parametrize("language", ["python", "yaml 1.1", "yaml 1.2", "json"])
def test_nested_values_are_read_back(language: str) -> None:
    """Lists and mappings of wrapped texts and numbers keep their shape."""
    quote, read = READERS[language]
    value = {"stop": [UserText("\n"), UserText("a: b")], "top_p": 0.9, "seed": 7, "flag": True, "none": None}

    assert read(quote(value)) == {"stop": ["\n", "a: b"], "top_p": 0.9, "seed": 7, "flag": True, "none": None}


@pytest.mark.parametrize("number", [0.0001, 1e-05, 1e20, 1.5, -0.0, 2.0, 1e300])
def test_floats_stay_floats_for_every_reader(number: float) -> None:
    """YAML 1.1 takes `1e-05` for a string; ours has a dot."""
    assert yaml_11(quoting.yaml(number)) == number
    assert yaml_12(quoting.yaml(number)) == number
    assert isinstance(yaml_11(quoting.yaml(number)), float)


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\0" not in text])
def test_a_shell_word_is_one_argument(text: str) -> None:
    """The shell neither expands nor splits it."""
    printed = subprocess.run(["sh", "-c", f"printf %s {quoting.sh(text)}"], capture_output=True, check=True).stdout

    assert printed.decode() == text


def test_a_shell_word_cannot_hold_nul() -> None:
    """No program can be given one."""
    with pytest.raises(ValueError, match="NUL"):
        quoting.sh(UserText("a\0b"))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_comment_stays_one_line_and_a_comment(text: str) -> None:
    """It neither ends the comment of any language nor continues on the next line."""
    line = quoting.comment(UserText(text))

    assert line.isprintable()
    assert not line.endswith("\\")
    assert "*/" not in line
    assert "-->" not in line


@pytest.mark.parametrize("text", HOSTILE)
def test_a_docstring_says_the_text(text: str) -> None:
    """Python reads the printable text back, with its own line breaks."""
    namespace: dict[str, Callable[[], None]] = {}

    exec(f'def function():\n    """{quoting.docstring(UserText(text))}"""\n', namespace)

    assert (inspect.getdoc(namespace["function"]) or "") == quoting.docstring_value(UserText(text))


def test_docstrings_are_as_ruff_formats_them(tmp_path: Path) -> None:
    """Formatting a generated file changes nothing, so it does not look edited."""
    functions = [
        f'def function_{index}() -> None:\n    """{quoting.docstring(text)}"""\n'
        for index, text in enumerate(HOSTILE)
        if quoting.docstring_value(text)
    ]
    source = "\n\n".join(functions)
    module = tmp_path / "module.py"
    module.write_text(source, encoding="utf-8")

    ruff = Path(sys.executable).with_name("ruff")
    subprocess.run([ruff, "format", "--isolated", "--quiet", module], check=True)

    assert module.read_text(encoding="utf-8") == source


def test_strings_are_as_ruff_formats_them(tmp_path: Path) -> None:
    """The same for literals."""
    source = "".join(f"TEXT_{index} = {quoting.py(text)}\n" for index, text in enumerate(HOSTILE))
    module = tmp_path / "module.py"
    module.write_text(source, encoding="utf-8")

    ruff = shutil.which("ruff") or Path(sys.executable).with_name("ruff")
    subprocess.run([ruff, "format", "--isolated", "--quiet", module], check=True)

    assert module.read_text(encoding="utf-8") == source


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("*a* _b_", "\\*a\\* \\_b\\_"),
        ("<script>", "\\<script\\>"),
        ("# title\nnext", "\\# title next"),
        ("1. first", "1\\. first"),
        ("a | b", "a \\| b"),
    ],
)
def test_markdown_shows_the_text(text: str, shown: str) -> None:
    """Nothing of it is markup."""
    assert quoting.md(UserText(text)) == shown


def test_a_code_span_is_fenced_by_more_backticks_than_it_holds() -> None:
    """Otherwise the span would end early."""
    assert quoting.md_code(UserText("a `b` c")) == "``a `b` c``"
    assert quoting.md_code(UserText("`x`")) == "`` `x` ``"


@pytest.mark.parametrize("value", [b"bytes", object(), {1, 2}])
def test_what_has_no_literal_is_refused(value: object) -> None:
    """A template that prints an object by mistake fails instead of writing its address."""
    for quote in (quoting.py, quoting.yaml, quoting.toml, quoting.sh, quoting.md):
        with pytest.raises(TypeError):
            quote(value)
