import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import openapi_capture
from tests.compiler.blueprint_projects import BLUEPRINT
from tests.golden_trees import GOLDEN, NAMES, ROOT

TEMPLATES = BLUEPRINT / "{{cookiecutter.name}}"
PIN = re.compile(r"^([a-z0-9.-]+)==(\S+)$", re.MULTILINE)

# Where `pip install --group NAME` of a generated project begins.
GROUPS = {
    "api": ["fastapi", "httptools", "uvicorn", "uvloop"],
    "worker": ["huggingface-hub", "jinja2", "numpy", "safetensors", "tokenizers", "torch", "transformers"],
    "dev": ["httpx2", "mypy", "pytest", "ruff", "types-pyyaml"],
    "both": ["msgspec", "prometheus-client", "pyyaml", "pyzmq", "pip"],
}


def test_every_template_is_planned() -> None:
    """A template that no entry names would never be written."""
    entries = yaml.safe_load((BLUEPRINT / "blueprint.yaml").read_text(encoding="utf-8"))["files"]
    planned = {entry["template"] for entry in entries if "template" in entry}

    assert planned == {path.relative_to(TEMPLATES).as_posix() for path in TEMPLATES.rglob("*") if path.is_file()}


def test_templates_are_not_taken_for_what_they_make() -> None:
    """All end in `.j2`: no tool compiles, lints or collects them; names of files hold no conditions."""
    for path in TEMPLATES.rglob("*"):
        if path.is_file():
            assert path.suffix == ".j2"
            assert "{%" not in path.relative_to(BLUEPRINT).as_posix()


@pytest.mark.parametrize("protocol", openapi_capture.PROTOCOLS)
def test_captured_descriptions_are_current(protocol: str) -> None:
    """They say what the runtime's models say today; `make golden` captures them anew."""
    captured = (openapi_capture.CAPTURES / f"{protocol}.json").read_text(encoding="utf-8")

    assert captured == openapi_capture.capture(protocol)


def test_projects_and_this_repository_use_the_same_versions() -> None:
    """What is pinned in a project is what its golden tests ran with here."""
    ours = dict(PIN.findall((ROOT / "constraints.txt").read_text(encoding="utf-8")))
    theirs = _project_pins()

    assert {name: ours.get(name) for name in theirs} == theirs


@pytest.mark.parametrize("group", GROUPS)
def test_every_dependency_of_a_project_is_pinned(group: str) -> None:
    """Those of dependencies too."""
    assert _closure(GROUPS[group]) <= _project_pins().keys()


def test_the_groups_above_are_the_runtime_s_extras() -> None:
    """The runtime's own requirements begin the same way."""
    requires = [Requirement(text) for text in distribution("flashgen-runtime").requires or ()]
    by_extra = {
        extra: {canonicalize_name(r.name) for r in requires if r.marker and r.marker.evaluate({"extra": extra})}
        for extra in ("server", "worker")
    }

    assert by_extra["server"] == set(GROUPS["api"])
    assert by_extra["worker"] == set(GROUPS["worker"])
    assert {canonicalize_name(r.name) for r in requires if not r.marker} == set(GROUPS["both"]) - {"pip"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("tool", "arguments", "pattern"),
    [
        ("hadolint", ["--failure-threshold", "info"], "**/Dockerfile"),
        (
            "yamllint",
            [
                "--strict",
                "-d",
                "{extends: default, rules: {document-start: disable, line-length: disable, "
                "truthy: {check-keys: false}, comments-indentation: disable}}",
            ],
            "**/*.y*ml",
        ),
        ("check-jsonschema", ["--builtin-schema", "vendor.compose-spec"], "compose.yaml"),
        ("check-jsonschema", ["--builtin-schema", "vendor.github-workflows"], ".github/workflows/ci.yml"),
    ],
    ids=["hadolint", "yamllint", "compose", "workflow"],
)
def test_other_linters_agree(name: str, tool: str, arguments: list[str], pattern: str) -> None:
    """Dockerfiles, YAML, compose and the CI workflow, as their own communities judge them."""
    program = Path(sys.executable).with_name(tool)
    files = [str(path) for path in (GOLDEN / name).glob(pattern)]

    result = subprocess.run([program, *arguments, *files], capture_output=True, text=True, check=False)

    assert files
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_dockerfiles_build_everywhere(name: str) -> None:
    """No syntax that older builders refuse or that needs a network: frontends, here-documents, linked copies."""
    for path in (GOLDEN / name).glob("**/Dockerfile"):
        text = path.read_text(encoding="utf-8")
        assert text.index("ARG PYTHON_IMAGE=") < text.index("FROM ")
        assert not re.search(r"^# *syntax=|<<|COPY --link|curl|:latest", text, re.MULTILINE)
        assert "torch" not in text or path.parent.name != "api"
        assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE)


def _project_pins() -> dict[str, str]:
    return dict(PIN.findall((TEMPLATES / "constraints.txt.j2").read_text(encoding="utf-8")))


def _closure(names: list[str]) -> set[str]:
    """The packages and all that they need, as installed here."""
    waiting, found = [Requirement(name) for name in names], set()
    seen = set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        found.add(key[0])
        extras = requirement.extras or {""}
        for text in distribution(requirement.name).requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return found
