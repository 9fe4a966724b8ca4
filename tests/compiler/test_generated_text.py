import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from flashgen.quoting import docstring_value
from flashgen_runtime.config import load_config
from tests.compiler import nasty_specs
from tests.compiler.blueprint_projects import rendered, write
from tests.compiler.nasty_specs import PRINTABLE, as_yaml

SPECS: dict[str, dict[str, Any]] = {
    "every-field": nasty_specs.every_field_spec(),
    "long": nasty_specs.long_spec(),
    "namesakes": nasty_specs.namesakes_spec(),
    "many-servers": nasty_specs.many_servers_spec(),
    "hostile": nasty_specs.hostile_spec(),
    **{f"random-{seed}": nasty_specs.random_spec(seed) for seed in range(14)},
}
COMPARE_OPENAPI = Path(__file__).parent / "compare_openapi.py"


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A project of each spec."""
    root = tmp_path_factory.mktemp("projects")
    folders = {}
    for name, spec in SPECS.items():
        (root / name).mkdir()
        folders[name] = write(rendered(root / name, as_yaml(spec)), root / name / "project")
    return folders


def test_python_is_formatted_and_clean(projects: dict[str, Path]) -> None:
    """Every generated file is a fixed point of the formatter, and the linter has nothing to say."""
    for command in (["format", "--diff"], ["check", "--output-format", "concise"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *map(str, projects.values())],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout


def test_every_file_parses(projects: dict[str, Path]) -> None:
    """Python, YAML, JSON and TOML are read by their own parsers."""
    parsers = {
        ".py": lambda text: compile(text, "generated", "exec"),
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".json": json.loads,
        ".toml": tomllib.loads,
    }
    for folder in projects.values():
        for path in folder.rglob("*"):
            if path.suffix in parsers:
                assert parsers[path.suffix](path.read_text(encoding="utf-8")) is not None or path.name == "hooks.py", (
                    path
                )


def test_openapi_json_is_what_the_application_serves(projects: dict[str, Path]) -> None:
    """Declared fields are described as pydantic describes them, whatever they are."""
    result = subprocess.run(
        [sys.executable, str(COMPARE_OPENAPI), *map(str, projects.values())],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_the_runtime_takes_every_configuration(projects: dict[str, Path]) -> None:
    """The contract holds for every spec."""
    for name, folder in projects.items():
        assert load_config(folder / "config" / "service.yaml").name == SPECS[name]["name"]


def test_texts_reach_the_runtime_unharmed(projects: dict[str, Path]) -> None:
    """The worker reads ids, aliases, chat templates and stop strings as they were written."""
    config = load_config(projects["hostile"] / "config" / "service.yaml")

    for server, spec in zip(config.servers, SPECS["hostile"]["servers"], strict=True):
        model, other = server.models
        written = spec["models"][0]
        assert model.id == written["name"]
        assert set(written["aliases"]) <= set(model.aliases)
        assert model.chat_template == written["chat_template"]
        assert model.generation_params.stop == tuple(written["generation_params"]["stop"])
        assert other.prefetch == server.swap.preload == (model.id,)


@pytest.mark.parametrize("target", ["compose", "kubernetes"])
def test_environment_variables_arrive_unharmed(projects: dict[str, Path], target: str) -> None:
    """Neither compose nor Kubernetes finds a variable in a text: every `$` is doubled."""
    read = _compose_environment if target == "compose" else _kubernetes_environment

    for number, text in enumerate(PRINTABLE):
        written = read(projects["hostile"], f"server-{number}")["GREETING"]

        assert "$" not in written.replace("$$", "")
        assert written.replace("$$", "$") == text


def test_texts_reach_callers_unharmed(projects: dict[str, Path]) -> None:
    """Descriptions, examples, defaults and allowed values are in the documentation as they were written."""
    document = json.loads((projects["hostile"] / "openapi.json").read_text(encoding="utf-8"))
    schemas = document["components"]["schemas"]

    for number, text in enumerate(PRINTABLE):
        operation = document["paths"][f"/text/{number}"]["post"]
        fields = schemas[f"Text{number}Request"]["properties"]
        # A docstring cannot hold everything; what it can hold is what it says. Without a text there is a standard one.
        assert operation["description"] == docstring_value(text or "Continue a prompt.")
        assert (fields["prompt"]["default"], fields["prompt"]["description"]) == (text, text)
        assert fields["model"]["anyOf"][0]["enum"] == [text or "x", "other"]
        assert fields["model"]["examples"] == [text or "x"]
        assert schemas[f"Text{number}Response"]["properties"]["response"]["description"] == text


@pytest.mark.parametrize("text", [*PRINTABLE[:6], *PRINTABLE[6::5]])
def test_a_description_of_the_project_stays_a_description(tmp_path: Path, text: str) -> None:
    """It reaches the application as it is, and breaks neither README nor pyproject.toml."""
    spec = nasty_specs.hostile_spec(["plain"], description=text)

    files = {file.path: file.content.decode() for file in rendered(tmp_path, as_yaml(spec)).files if not file.is_binary}

    assert json.loads(files["openapi.json"])["info"].get("description", "") == (text or "Serves plain (server-0).")
    assert tomllib.loads(files["pyproject.toml"])["project"]["description"] == (text or "Serves plain (server-0).")
    assert files["README.md"].count("\n## Run\n") == 1


def test_what_was_not_asked_for_is_not_there(tmp_path: Path) -> None:
    """A target that is not named has no files, and one api gives one route."""
    (tmp_path / "compose").mkdir()
    (tmp_path / "kubernetes").mkdir()
    spec = nasty_specs.minimal()

    compose = rendered(tmp_path / "compose", as_yaml({**spec, "deploy": {"targets": ["compose"]}}))
    kubernetes = rendered(tmp_path / "kubernetes", as_yaml({**spec, "deploy": {"targets": ["kubernetes"]}}))

    assert not [file.path for file in compose.files if file.path.startswith("deploy/")]
    assert not [file.path for file in kubernetes.files if file.path == "compose.yaml"]
    routes = [file.path for file in compose.files if file.path.startswith("api/routes/")]
    assert routes == ["api/routes/__init__.py", "api/routes/chat_completions.py"]
    for project in (compose, kubernetes):
        (readme,) = (file.content.decode() for file in project.files if file.path == "README.md")
        assert ("compose" in readme) == (project is compose)
        assert ("kubectl" in readme) == (project is kubernetes)


def test_examples_send_what_a_structured_field_takes(tmp_path: Path) -> None:
    """A prediction that callers must send is none without its type and text."""
    spec = nasty_specs.minimal()
    spec["apis"] = [{**spec["apis"][0], "inputs": {"prediction": "dict"}}]

    files = {file.path: file.content.decode() for file in rendered(tmp_path, as_yaml(spec)).files if not file.is_binary}

    assert '"prediction": {"type": "content", "content": "Hello"}' in files["README.md"]
    assert "prediction: openai.Prediction\n" in files["api/routes/chat_completions.py"]


def _compose_environment(folder: Path, server: str) -> dict[str, str]:
    environment: dict[str, str] = _yaml(folder / "compose.yaml")["services"][server]["environment"]
    return environment


def _kubernetes_environment(folder: Path, server: str) -> dict[str, str]:
    deployment = _yaml(folder / "deploy" / "k8s" / "base" / f"{server}-deployment.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"]}


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
