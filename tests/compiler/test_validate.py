"""`stages.validate`: wrong specs get exactly their diagnostics, right ones become a `ProjectSpec` unharmed."""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flashgen.commands.validate import run
from flashgen.diagnostics import render_text
from flashgen.errors import SpecError
from flashgen.spec import ApiSpec, FieldSpec, ModelReference, ModelSpec, ProjectSpec
from flashgen.stages.load import load
from flashgen.stages.validate import validate
from flashgen.types import Atom, ListType, UnionType
from flashgen.yaml_reader import read_document
from tests.invalid_specs import cases, diagnosis

TESTS = Path(__file__).parents[1]
VALID = sorted((TESTS / "valid").glob("*.yaml"))
SAMPLES = sorted((TESTS.parent / "samples").glob("*/flashgen.yaml"))

MINIMAL: dict[str, Any] = {"apis": [{"path": "/generate"}], "servers": [{"model": "Qwen/Qwen3-0.6B"}]}


def validated(data: object, path: Path = Path("spec.yaml")) -> ProjectSpec:
    """The spec of plain data, through YAML."""
    return validate(read_document(path, yaml.safe_dump(data, allow_unicode=True, sort_keys=False).encode("utf-8")))


def complaint(data: object, path: Path = Path("spec.yaml")) -> str:
    with pytest.raises(SpecError) as caught:
        validated(data, path)
    return render_text(caught.value.diagnostics, path=path, text=caught.value.text)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_wrong_specs_get_exactly_their_diagnostics(case: Path) -> None:
    """`python -m tests.regenerate_invalid` rewrites the expectations."""
    assert diagnosis(case / "spec.yaml") == (case / "stderr.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_odd_but_legal_specs_are_accepted(path: Path) -> None:
    """Unusual ways to write what the language allows."""
    assert validate(load(path)).apis


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.parent.name)
def test_samples_are_accepted(path: Path) -> None:
    """Among them the first spec of the language, verbatim."""
    assert validate(load(path)).servers


def test_the_first_spec_is_read_as_it_says() -> None:
    """Sizes in bytes, the union in its order, the capability as a pair, nothing filled in."""
    spec = validate(load(TESTS.parent / "samples/02-first-spec/flashgen.yaml"))

    (server,) = spec.servers
    (model,) = server.models
    assert isinstance(model, ModelSpec)
    assert (model.type, model.uri, model.device) == ("text-generation", "mistralai/Mistral-7B-v0.1", "cuda:0")
    assert model.generation_params == {"top_p": 0.9}
    assert (server.name, server.rpc_port, server.resources.cpus) == (None, 6500, 2.0)
    assert (server.resources.memory_bytes, server.resources.gpu_memory_bytes) == (16 * 10**9, 24 * 10**9)
    assert (server.resources.gpus, server.resources.gpu_cuda_capability) == (1, (9, 0))
    (api,) = spec.apis
    messages, model_field = api.inputs or ()
    assert messages.type == UnionType((ListType(Atom("dict")), Atom("str")))
    assert (model_field.name, model_field.optional, model_field.has_default) == ("model", True, False)
    assert (spec.name, spec.targets, api.protocol, api.servers) == (None, None, None, None)


def test_every_form_of_a_field_means_the_same() -> None:
    """Short, long, with attributes beside or below, as a list and as a mapping."""
    field = {"type": "str", "max_length": 5}
    forms: list[Any] = [
        [{"prompt": "str", "max_length": 5}],
        [{"name": "prompt", **field}],
        [{"prompt": field}],
        {"prompt": field},
    ]

    fields = [validated(MINIMAL | {"apis": [{"path": "/generate", "inputs": form}]}).apis[0].inputs for form in forms]

    for (found,) in (form or () for form in fields):
        assert (found.name, found.type, found.max_length, found.optional) == ("prompt", Atom("str"), 5, False)


def test_fields_keep_the_place_of_their_name() -> None:
    """Later stages point at it, whatever form the field had."""
    text = (
        "apis:\n- path: /generate\n  inputs:\n  - name: prompt\n    type: str\n  - model: str\nservers:\n- model: a/b\n"
    )

    spec = validate(read_document(Path("spec.yaml"), text.encode()))

    assert [(field.place.line, field.place.column) for field in spec.apis[0].inputs or ()] == [(4, 11), (6, 5)]


def test_aliases_of_generation_params_become_canonical() -> None:
    """`max_new_tokens`, `do_sample` and a single stop text are other ways to write the same."""
    params = {"max_new_tokens": 64.0, "do_sample": False, "stop": "END", "seed": 1}
    model = {"uri": "Qwen/Qwen3-0.6B", "generation_params": params}

    (server,) = validated(MINIMAL | {"servers": [{"model": model}]}).servers

    assert isinstance(server.models[0], ModelSpec)
    assert server.models[0].generation_params == {"max_tokens": 64, "temperature": 0.0, "stop": ["END"], "seed": 1}
    assert isinstance(server.models[0].generation_params["max_tokens"], int)


def test_sampling_without_a_temperature_is_at_one() -> None:
    """`do_sample: true` alone draws from the model's own distribution."""
    model = {"uri": "Qwen/Qwen3-0.6B", "generation_params": {"do_sample": True}}

    (server,) = validated(MINIMAL | {"servers": [{"model": model}]}).servers

    assert isinstance(server.models[0], ModelSpec)
    assert server.models[0].generation_params == {"temperature": 1.0}


def test_a_model_is_a_key_of_models_a_uri_or_a_mapping() -> None:
    """Only a key of `models` stays a reference."""
    spec = validate(load(TESTS / "valid/models-by-name.yaml"))

    assert isinstance(spec.servers[0].models[0], ModelReference)
    assert spec.models["chat"].aliases == ("default",)
    assert isinstance(validated(MINIMAL).servers[0].models[0], ModelSpec)


def test_a_bare_name_is_a_folder_beside_the_spec(tmp_path: Path) -> None:
    """Later stages see it as a path; without the folder it is an error that offers three ways out."""
    data = MINIMAL | {"servers": [{"model": "llama"}]}
    assert complaint(data, tmp_path / "spec.yaml").count("llama` for a") == 2

    (tmp_path / "llama").mkdir()

    (model,) = validated(data, tmp_path / "spec.yaml").servers[0].models
    assert isinstance(model, ModelSpec)
    assert model.uri == "./llama"


def test_secrets_are_names() -> None:
    """With or without `${…}`."""
    container = {"secrets": ["${HF_TOKEN}", "API_KEY"], "env": {"A": "${B}"}}

    (server,) = validated(MINIMAL | {"servers": [{"model": "a/b", "container": container}]}).servers

    assert server.container.secrets == ("HF_TOKEN", "API_KEY")
    assert server.container.env == {"A": "${B}"}


def test_a_project_needs_a_name_from_somewhere() -> None:
    """A file called in letters that no DNS label has gives none."""
    assert "needs a `name`" in complaint(MINIMAL, Path("模型.yaml"))
    assert "needs a `name`" in complaint(MINIMAL, Path("….yaml"))
    assert validated(MINIMAL | {"name": "chat"}, Path("模型.yaml")).name == "chat"


def test_everything_wrong_is_said_in_one_run() -> None:
    """Structure and meaning; what is broken in structure is not complained about again."""
    data = {
        "nmae": "chat",
        "apis": [{"path": "/generate", "server": "lm"}, {"path": 5}],
        "servers": [
            {"name": "llm", "model": {"uri": "a/b", "device": 3}, "resources": {"gpus": 0, "gpu_memory": "1GB"}}
        ],
    }

    codes = [line[6:11] for line in complaint(data).splitlines() if line.startswith("error[")]

    assert sorted(codes) == ["FG101", "FG103", "FG104", "FG104", "FG220"]


HOSTILE_TEXTS = [
    "'single' \"double\" `back` \\ \\n",
    "line one\nline two\n\ttab",
    "$(touch /tmp/x) ${HOME} $HOME `id` ; rm -rf /",
    "{{ 7 * 7 }} {% for x in y %} {# c #}",
    '"""doc""" \'\'\' \\N{BULLET} %s %(a)s {0}',
    "- a: b\n# no comment\n--- \n...",
    "<script>alert(1)</script> ]]> -->",
    "\u202eevil\u2066 \u2028 \u2029 \u200b \ufeff 💣",
    " leading and trailing ",
    "null",
    "",
]


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_free_text_is_carried_unharmed(text: str) -> None:
    """Every place where users may write what they like."""
    name = text.replace("\n", " ").replace("\t", " ") or "x"
    template = "{% raw %}" + text + "{% endraw %}"
    data = {
        "description": text,
        "apis": [
            {
                "path": "/generate",
                "description": text,
                "inputs": {
                    "prompt": {"type": "str", "description": text, "example": text},
                    "stop": {"type": "list[str]", "default": [text], "example": [text]},
                    "model": {"type": "str", "enum": [text, f"{text}2"], "default": text},
                },
            }
        ],
        "servers": [
            {
                "model": {
                    "uri": "Qwen/Qwen3-0.6B",
                    "name": name,
                    "aliases": [f"{name}2"],
                    "chat_template": template,
                    "generation_params": {"stop": [text or "x"]},
                },
                "container": {"env": {"A": text}},
            }
        ],
    }

    spec = validated(data)

    (api,), (server,) = spec.apis, spec.servers
    (model,) = server.models
    assert isinstance(model, ModelSpec)
    prompt, stop, field = api.inputs or ()
    assert (spec.description, api.description, prompt.description, prompt.example) == (text,) * 4
    assert (stop.default, stop.example, field.enum, field.default) == ([text], [text], (text, f"{text}2"), text)
    assert (model.name, model.aliases, model.chat_template) == (name, (f"{name}2",), template)
    assert (model.generation_params["stop"], server.container.env) == ([text or "x"], {"A": text})


def test_the_command_says_what_a_spec_holds() -> None:
    """One line."""
    path = TESTS.parent / "samples/01-complete-python/flashgen.yaml"

    report = run(argparse.Namespace(spec=path))

    assert report.lines == (f"{path} is valid: 4 apis, 1 server",)
    assert report.exit_code == 0


def test_an_absent_key_is_not_a_default() -> None:
    """`None` means that the user did not say."""
    (api,) = validated(MINIMAL).apis

    assert api == ApiSpec(path="/generate", place=api.place)
    assert api.inputs is None
    assert FieldSpec(name="a", type=Atom("str"), place=api.place).default is None


def subtrees(tree: Any) -> Iterator[Any]:
    """A tree and everything in it."""
    yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from subtrees(child)


def readable_trees() -> list[Any]:
    """The data of every spec here that is YAML as a spec may use it, right or wrong."""
    trees = []
    for path in [*VALID, *SAMPLES, *(case / "spec.yaml" for case in cases())]:
        try:
            trees.append(load(path).data)
        except SpecError:
            continue
    return trees


TREES = readable_trees()
PIECES = [piece for tree in TREES for piece in subtrees(tree) if piece is not tree]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_tree_is_a_spec_or_a_spec_error(data: st.DataObject) -> None:
    """Pieces of all specs, right and wrong, grafted into one: no rule raises anything but `SpecError`."""
    tree = copy.deepcopy(data.draw(st.sampled_from(TREES)))
    for _ in range(data.draw(st.integers(1, 4))):
        branches = [branch for branch in subtrees(tree) if isinstance(branch, dict | list) and branch]
        if not branches:
            break
        branch = data.draw(st.sampled_from(branches))
        key = data.draw(st.sampled_from(sorted(branch) if isinstance(branch, dict) else range(len(branch))))
        branch[key] = copy.deepcopy(data.draw(st.sampled_from(PIECES)))
    raw = json.dumps(tree).encode("utf-8")  # JSON is YAML, and escapes what no file can hold
    try:
        spec = validate(read_document(Path("spec.yaml"), raw))
    except SpecError as error:
        assert render_text(error.diagnostics, path=error.path, text=error.text)  # noqa: PT017  # either end is right
    else:
        assert spec.apis


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | st.text("apis:-[]{}&*!|>'\"%@`#,? \n\t\\x01~", max_size=80).map(str.encode))
def test_any_bytes_are_a_spec_or_a_spec_error(raw: bytes) -> None:
    """Also what is no YAML, and no text."""
    with pytest.raises(SpecError):
        validate(read_document(Path("spec.yaml"), raw))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_specs_are_a_spec_or_a_spec_error(data: st.DataObject) -> None:
    """A right spec with some characters cut out or doubled."""
    text = data.draw(st.sampled_from([path.read_text("utf-8") for path in [*VALID, *SAMPLES]]))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 30)))
    damaged = text[:start] + text[end:] if data.draw(st.booleans()) else text[:end] + text[start:]
    try:
        spec = validate(read_document(Path("spec.yaml"), damaged.encode("utf-8")))
    except SpecError as error:
        assert render_text(error.diagnostics, path=error.path, text=error.text)  # noqa: PT017  # either end is right
    else:
        assert spec.apis


@pytest.mark.parametrize(
    "raw",
    [
        b"apis: [" + b"{colour: 1}," * 15_000 + b"]\nservers: [{model: a/b}]\n",
        b"apis: [" + b"{path: /generate}," * 15_000 + b"]\nservers: [{model: a/b}]\n",
        b"apis: [{path: /generate}]\nservers: [" + b"{model: a/b}," * 15_000 + b"]\n",
        b"apis: [{path: /generate, inputs: [" + b"{prompt: str}," * 15_000 + b"]}]\nservers: [{model: a/b}]\n",
        b"{" + b",".join(b"k%d: 1" % i for i in range(60_000)) + b"}",
        b"apis: [{path: /generate, server: [" + b"a," * 90_000 + b"]}]\nservers: [{model: a/b}]\n",
        b"apis: [{path: /generate}]\nservers: [{model: {uri: a/b, aliases: [" + b"{a: 1}," * 40_000 + b"]}}]\n",
        b"apis: [{path: /" + b"a/" * 400_000 + b"}]\nservers: [{model: a/b}]\n",
        b"apis: [{path: /generate, inputs: {prompt: " + b"list(" * 150_000 + b"}}]\nservers: [{model: a/b}]\n",
    ],
    ids=[
        "unknown keys",
        "equal apis",
        "equal servers",
        "equal fields",
        "keys",
        "references",
        "aliases",
        "path",
        "type",
    ],
)
def test_large_wrong_specs_cost_little(raw: bytes) -> None:
    """No work grows with the square of the file's size."""
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        validate(read_document(Path("spec.yaml"), raw))
    render_text(caught.value.diagnostics, path=Path("spec.yaml"), text=caught.value.text)

    # Quadratic work on these takes minutes.
    assert time.process_time() - start < 10
