import copy
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema
import msgspec
import pytest
import yaml

from flashgen.resources import data_dir
from flashgen_runtime import config, messages
from tests.golden_trees import GOLDEN, NAMES

SCHEMA: dict[str, Any] = json.loads((data_dir("schemas") / "v1" / "service.schema.json").read_text(encoding="utf-8"))

# The struct behind each object of the schema.
STRUCTS: dict[str, type[msgspec.Struct]] = {
    "service": config.ServiceConfig,
    "api": config.ApiConfig,
    "server": config.ServerConfig,
    "model": config.ModelConfig,
    "speculative": config.SpeculativeConfig,
    "draft": config.DraftConfig,
    "hub": config.HubSource,
    "folder": config.FolderSource,
    "generation_params": messages.GenerationParams,
    "engine": config.EngineConfig,
    "weights": config.WeightsConfig,
    "swap": config.SwapConfig,
    "requirements": config.DeviceRequirements,
}
OBJECTS: dict[str, dict[str, Any]] = {"service": SCHEMA, **SCHEMA["$defs"]}


def test_the_schema_is_one() -> None:
    """It is valid itself, and has the same objects as the runtime."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    assert OBJECTS.keys() == STRUCTS.keys()


@pytest.mark.parametrize("name", STRUCTS)
def test_schema_and_runtime_have_the_same_keys(name: str) -> None:
    """Every key of the one is a key of the other, and required in both or in neither."""
    struct, schema = STRUCTS[name], OBJECTS[name]
    tag = {"kind"} if struct.__struct_config__.tag else set()
    defaulted = struct.__struct_fields__[len(struct.__struct_fields__) - len(struct.__struct_defaults__) :]

    assert schema["properties"].keys() == {*struct.__struct_fields__, *tag}
    assert set(schema.get("required", ())) == {*struct.__struct_fields__, *tag} - set(defaulted)
    assert schema["additionalProperties"] is False
    assert struct.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("name", STRUCTS)
def test_schema_and_runtime_allow_the_same_words(name: str) -> None:
    """Enumerations of the schema are the runtime's literals."""
    for field, hint in get_type_hints(STRUCTS[name]).items():
        allowed = OBJECTS[name]["properties"][field].get("enum")
        if allowed is not None:
            assert allowed == _words(hint)


@pytest.mark.parametrize("name", NAMES)
def test_schema_and_runtime_judge_alike(name: str, tmp_path: Path) -> None:
    """Both take a sample's configuration; both refuse it without any one of its keys, and with one more anywhere."""
    good = yaml.safe_load((GOLDEN / name / "config" / "service.yaml").read_text(encoding="utf-8"))

    assert _verdicts(good, tmp_path) == (True, True)
    for path, damaged in _damaged(good):
        assert _verdicts(damaged, tmp_path) == (False, False), path


def _words(hint: Any) -> list[str | None]:
    """Of a literal, or of a literal or `None`."""
    if type(None) not in get_args(hint):
        return list(get_args(hint))
    return [*get_args(get_args(hint)[0]), None]


def _verdicts(tree: Any, folder: Path) -> tuple[bool, bool]:
    """Of the schema and of the runtime."""
    path = folder / "service.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    try:
        config.load_config(path)
        by_runtime = True
    except config.ConfigError:
        by_runtime = False
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(tree), by_runtime


def _damaged(tree: Any) -> list[tuple[str, Any]]:
    damaged = []
    for path in _mappings(tree, ()):
        is_params = path[-1:] == ("generation_params",)
        for key in () if is_params else _at(tree, path):
            without = copy.deepcopy(tree)
            del _at(without, path)[key]
            damaged.append((f"{path} without {key}", without))
        extended = copy.deepcopy(tree)
        _at(extended, path)["unknown"] = 1
        damaged.append((f"{path} with an unknown key", extended))
    return damaged


def _mappings(node: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    below = [found for key, child in children for found in _mappings(child, (*path, key))]
    return [path, *below] if isinstance(node, dict) else below


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node
