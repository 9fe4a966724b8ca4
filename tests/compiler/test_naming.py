"""`flashgen.naming`: names of objects, modules, classes and variables."""

import keyword
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashgen import naming


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Mistral-7B-v0.1", "mistral-7b-v0-1"),
        ("mistralai/Mistral", "mistralai-mistral"),
        ("LLM_1", "llm-1"),
        ("3d viewer", "n-3d-viewer"),
        ("Crème brûlée", "creme-brulee"),
        ("--a--", "a"),
        ("模型", ""),
        ("", ""),
        ("x" * 60, "x" * 40),
        ("x" * 39 + "-y", "x" * 39),
    ],
)
def test_dns_labels(text: str, label: str) -> None:
    """Lower case, hyphens, a letter first, at most 40 characters; nothing where nothing is left."""
    assert naming.dns_label(text) == label


@given(st.text())
def test_any_text_gives_a_valid_label_or_none(text: str) -> None:
    """What Kubernetes asks of the name of a service; naming a name again changes nothing."""
    label = naming.dns_label(text)

    assert not label or re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", label)
    assert naming.dns_label(label) == label


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("chat-service", "chat_service"),
        ("import", "import_"),
        ("list", "list_"),
        ("Type", "type_"),
        ("hooks", "hooks_"),
    ],
)
def test_python_names(text: str, name: str) -> None:
    """Keywords, built-in names and what the caller reserves get an underscore."""
    assert naming.python_name(text, reserved=frozenset({"hooks"})) == name


@given(st.text(min_size=1).filter(naming.dns_label))
def test_python_names_are_identifiers(text: str) -> None:
    """Whatever the user wrote."""
    name = naming.python_name(text)

    assert name.isidentifier()
    assert not keyword.iskeyword(name)
    assert naming.class_name(text).isidentifier()
    assert naming.environment_name(text).isidentifier()


def test_class_and_environment_names() -> None:
    """As people write them."""
    assert naming.class_name("chat_completions") == "ChatCompletions"
    assert naming.environment_name("mistral-7b-v0-1") == "MISTRAL_7B_V0_1"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "chat_completions"),
        ("/generate/", "generate"),
        ("/v1", "v1"),
        ("/v2beta/x-y", "v2beta_x_y"),
        ("/", "root"),
    ],
)
def test_names_of_apis(path: str, name: str) -> None:
    """The path's words, without a version in front."""
    assert naming.api_name(path) == name


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("mistralai/Mistral-7B-v0.1", "Mistral-7B-v0.1"),
        ("../models/coder/", "coder"),
        ("file:///srv/llama", "llama"),
        ("./", ""),
        ("/", ""),
    ],
)
def test_last_part_of_a_uri(uri: str, name: str) -> None:
    """What a folder or a repository is called."""
    assert naming.last_part(uri) == name
