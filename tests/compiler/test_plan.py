from pathlib import Path

import pytest

from flashgen.errors import InternalError
from flashgen.project_paths import path_problem
from flashgen.stages.plan import default_target, plan
from tests.compiler.projects import CHAT_SPEC, resolved, write_blueprint

TWO_APIS = CHAT_SPEC.replace("servers:", "  - {path: /v1/models, method: GET}\nservers:")


def planned(folder: Path, manifest: str, spec: str = TWO_APIS) -> list[tuple[str, str]]:
    blueprint = write_blueprint(folder / "blueprint", manifest, {})
    return [(file.file_id, file.path) for file in plan(resolved(folder, spec), blueprint).files]


def test_files_are_sorted_by_path_and_named_by_template_and_item(tmp_path: Path) -> None:
    """The id stays when a path changes."""
    manifest = """\
files:
  - {template: b.py.j2}
  - {template: route.py.j2, target: "a/{api.name}.py", foreach: apis as api}
  - {template: main.py.j2, target: "w/{server.package}.py", foreach: servers as server}
  - {produce: wheel, target: "vendor/{project.runtime_wheel}"}
"""

    assert planned(tmp_path, manifest) == [
        ("route.py.j2#chat_completions", "a/chat_completions.py"),
        ("route.py.j2#models", "a/models.py"),
        ("b.py.j2", "b.py"),
        ("wheel", "vendor/flashgen_runtime-1.2.3-py3-none-any.whl"),
        ("main.py.j2#some-model", "w/some_model.py"),
    ]


@pytest.mark.parametrize(
    ("template", "target"),
    [("dot_github/workflows/ci.yml.j2", ".github/workflows/ci.yml"), ("a/dotted.py.j2", "a/dotted.py")],
)
def test_a_target_follows_from_its_template(template: str, target: str) -> None:
    """Dot files have no dot in the blueprint, where they would act on our own repository."""
    assert default_target(template) == target


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ("{}", True),
        ("{target: kubernetes}", True),
        ("{target: compose}", False),
        ("{target: [compose, kubernetes]}", True),
        ("{protocol: openai.models}", True),
        ("{protocol: generate}", False),
        ("{task: text-generation}", True),
        ("{has: hub_models}", True),
        ("{has: gpu}", False),
        ("{target: kubernetes, has: gpu}", False),
    ],
)
def test_when_compares_words(tmp_path: Path, when: str, holds: bool) -> None:
    """All keys must hold; of a list, one word."""
    spec = TWO_APIS + "deploy: {targets: [kubernetes]}\n"

    files = planned(tmp_path, f"files:\n  - {{template: x.j2, when: {when}}}\n", spec)

    assert len(files) == holds


def test_when_in_a_loop_asks_the_item(tmp_path: Path) -> None:
    """Each api gets the template of its own protocol."""
    manifest = (
        "files: [{template: x.j2, target: '{api.name}', foreach: apis as api, when: {protocol: openai.models}}]\n"
    )

    assert planned(tmp_path, manifest) == [("x.j2#models", "models")]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{template: x.j2, mod: 0755}", "`mod` is no key"),
        ("{template: x.j2, produce: wheel}", "either"),
        ("{owner: once}", "either"),
        ("{produce: wheel}", "needs `target`"),
        ("{template: x.j2, owner: seed}", "`owner` is"),
        ("{template: x.j2, mode: '0777'}", "`mode` is"),
        ("{template: x.j2, foreach: models as model}", "`foreach` is one of"),
        ("{template: x.j2, when: {colour: red}}", "`when` knows"),
        ("{template: x.j2, target: '{api.name}'}", "is no text of this output"),
        ("{template: x.j2, target: '{project.description}'}", "is no text of this output"),
        ("{template: x.j2, target: '../x'}", "shortest form"),
    ],
)
def test_a_manifest_with_a_mistake_is_our_fault(tmp_path: Path, entry: str, problem: str) -> None:
    """It names the entry."""
    with pytest.raises(InternalError, match=problem):
        planned(tmp_path, f"files:\n  - {entry}\n")


@pytest.mark.parametrize("other", ["a/b.txt", "A/B.txt"])
def test_two_files_for_one_path_are_refused(tmp_path: Path, other: str) -> None:
    """Also where only letters' case differs: on macOS they are one file."""
    with pytest.raises(InternalError, match="both written"):
        planned(tmp_path, f"files: [{{template: x.j2, target: a/b.txt}}, {{template: y.j2, target: {other}}}]\n")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "./a",
        "a/.",
        "",
        "a\\b",
        "C:/x",
        "a\0b",
        "a\nb",
        "con",
        "a/NUL.txt",
        "lpt1.tar.gz",
        "a.",
        "a ",
        "a/b?",
        ".flashgen/lock.yaml",
        ".git/hooks/pre-commit",
        ".GIT/config",
    ],
)
def test_paths_that_leave_the_project_or_fit_no_system_are_refused(path: str) -> None:
    """Containment is decided here, whatever renders and writes later."""
    assert path_problem(path) is not None


@pytest.mark.parametrize("path", ["a", ".gitignore", ".github/workflows/ci.yml", "console.py", "a/b-c_d.1.yaml"])
def test_ordinary_paths_are_fine(path: str) -> None:
    """Also those that begin like a device or with a dot."""
    assert path_problem(path) is None
