"""`schemas/v1/spec.schema.json`: complete for editors, and of one meaning under both drafts and for the fast path."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator

from flashgen.errors import SpecError
from flashgen.stages.load import load
from flashgen.validation import not_built
from flashgen.validation.fast_path import certainly_fits
from flashgen.validation.field_forms import ATTRIBUTES, with_fields_as_mappings
from flashgen.validation.problems import Problems
from flashgen.validation.structure import spec_schema
from tests.invalid_specs import cases

TESTS = Path(__file__).parents[1]
RIGHT = [*sorted((TESTS / "valid").glob("*.yaml")), *sorted((TESTS.parent / "samples").glob("*/flashgen.yaml"))]
SCHEMA = spec_schema()
NEWER, OLDER = Draft202012Validator(SCHEMA), Draft7Validator(SCHEMA)


def subschemas(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema that describes a value, with where it is."""
    yield path, schema
    for key in ("properties", "patternProperties", "$defs"):
        for name, inner in schema.get(key, {}).items():
            yield from subschemas(inner, f"{path}/{key}/{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from subschemas(schema[key], f"{path}/{key}")


ALL = dict(subschemas(SCHEMA))
OBJECTS = {path: schema for path, schema in ALL.items() if "object" in schema.get("type", ())}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path or "/")
def test_everything_is_described_with_an_example(path: str) -> None:
    """Editors show both; a reference shows what it refers to, and Draft 7 ignores what stands beside it."""
    schema = ALL[path]
    if "$ref" in schema:
        assert list(schema) == ["$ref"]
        return

    assert schema["description"].endswith(".")
    assert schema["examples"]


@pytest.mark.parametrize(
    "path", [path for path, schema in ALL.items() if "$ref" not in schema], ids=lambda path: path or "/"
)
def test_examples_are_right(path: str) -> None:
    """What an editor offers is what the schema takes."""
    schema = ALL[path] | {"$defs": SCHEMA["$defs"]}

    for example in ALL[path]["examples"]:
        assert Draft202012Validator(schema).is_valid(example)
        assert Draft7Validator(schema).is_valid(example)


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path or "/")
def test_objects_are_closed_but_for_extensions(path: str) -> None:
    """An unknown key is an error; keys that begin with `x-` are free. Mappings by name check the names instead."""
    schema = OBJECTS[path]
    if "properties" in schema:
        assert schema["additionalProperties"] is False
        assert list(schema["patternProperties"]) == ["^x-"]
        assert schema["title"]
    else:
        assert "propertyNames" in schema or path.endswith("/items")


def test_every_pattern_has_a_message() -> None:
    """One keyword serves editors and the command line."""
    names = [schema["propertyNames"] for schema in ALL.values() if "propertyNames" in schema]

    assert all("patternErrorMessage" in schema for schema in [*ALL.values(), *names] if "pattern" in schema)


def test_the_schema_is_valid_under_both_drafts() -> None:
    """No misspelt keyword type."""
    Draft202012Validator.check_schema(SCHEMA)
    Draft7Validator.check_schema(SCHEMA)


def test_the_schema_has_exactly_the_keys_that_are_built() -> None:
    """A new key needs a test that sees its effect, and this list."""
    keys = {schema["title"]: set(schema["properties"]) for schema in ALL.values() if "properties" in schema}

    assert keys == {
        "spec": {"version", "name", "description", "apis", "models", "servers", "deploy"},
        "api": {"path", "method", "name", "description", "protocol", "inputs", "outputs", "server"},
        "field": {"type", *ATTRIBUTES},
        "model": {
            *("type", "uri", "revision", "name", "aliases", "dtype", "quantization", "device", "max_context"),
            *("chat_template", "generation_params", "prefetch", "speculative"),
        },
        "speculative": {"method", "model", "models", "tokens"},
        "generation_params": {
            *("max_tokens", "max_new_tokens", "temperature", "top_p", "top_k", "stop", "seed", "do_sample"),
            *("min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
            *("n", "num_beams", "length_penalty"),
        },
        "server": {"name", "model", "models", "resources", "engine", "weights", "swap", "rpc_port", "container"},
        "weights": {"path", "loader", "threads", "pool", "keep_in_ram", "verify"},
        "swap": {"max_loaded", "evict", "idle_timeout", "preload"},
        "engine": {"batching", "kv_cache", "deterministic"},
        "batching": {"mode", "max_requests", "max_tokens", "max_wait"},
        "kv_cache": {"dtype", "block_size", "prefix_caching", "memory"},
        "resources": {"cpus", "memory", "gpus", "gpu_memory", "gpu_cuda_capability"},
        "container": {"env", "secrets"},
        "deploy": {"targets"},
    }
    assert set(not_built.KEYS) <= set(keys)
    for title, words in not_built.KEYS.items():
        assert not words & keys[title]


def test_words_that_are_not_built_are_not_in_the_schema() -> None:
    """A word leaves the table on the day the schema takes it."""
    for schema in ALL.values():
        for key, inner in schema.get("properties", {}).items():
            allowed = set(inner.get("enum", ())) | set(inner.get("items", {}).get("enum", ()))
            assert not any(not_built.is_value_not_built(key, word) for word in allowed)


def verdicts(data: Any) -> set[bool]:
    return {NEWER.is_valid(data), OLDER.is_valid(data), certainly_fits(data, SCHEMA, SCHEMA)}


@pytest.mark.parametrize("path", RIGHT, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_right_specs_fit_as_written_and_normalised(path: Path) -> None:
    """Editors see the list form of fields, validation sees the mapping form."""
    document = load(path)
    normalised = with_fields_as_mappings(document, Problems(document))

    assert verdicts(document.data) == {True}
    assert verdicts(normalised.data) == {True}


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_wrong_specs_get_one_verdict(case: Path) -> None:
    """Draft 7, 2020-12 and the fast path agree, whether the mistake is one of structure or not."""
    try:
        document = load(case / "spec.yaml")
    except SpecError:
        return
    normalised = with_fields_as_mappings(document, Problems(document))

    assert len(verdicts(document.data)) == 1
    assert len(verdicts(normalised.data)) == 1


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2**64)
    | st.floats(-2, 3)
    | st.sampled_from(["", "a", "/a", "16GB", "cuda:0"])
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_specs_get_one_verdict(data: st.DataObject) -> None:
    """A right spec with one value replaced: the fast path says yes exactly where jsonschema does."""
    tree = yaml.safe_load(data.draw(st.sampled_from(RIGHT)).read_text("utf-8-sig"))
    parent: Any = tree
    while True:
        key = data.draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
        if not isinstance(parent[key], dict | list) or not parent[key] or data.draw(st.booleans()):
            break
        parent = parent[key]
    parent[key] = data.draw(LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.just("uri") | st.text(), LEAVES))

    assert len(verdicts(tree)) == 1
