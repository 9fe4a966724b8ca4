import stat
from pathlib import Path

import pytest
from cookiecutter.generate import generate_files

from flashgen.errors import InternalError
from flashgen.rendered import RenderedProject
from flashgen.stages.plan import plan
from flashgen.stages.render import render
from tests.compiler.projects import CHAT_SPEC, resolved, write_blueprint


def rendered(
    folder: Path,
    templates: dict[str, str],
    *,
    spec: str = CHAT_SPEC,
    manifest: str | None = None,
    cache_folder: Path | None = None,
) -> RenderedProject:
    names = [name for name in templates if not name.startswith("../")]
    manifest = manifest or "files:\n" + "".join(f"  - {{template: {name}}}\n" for name in names)
    blueprint = write_blueprint(folder / "blueprint", manifest, templates)
    return render(plan(resolved(folder, spec), blueprint), cache_folder=cache_folder)


def text_of(folder: Path, template: str, *, spec: str = CHAT_SPEC) -> str:
    (file,) = rendered(folder, {"x.j2": template}, spec=spec).files
    return file.content.decode()


def test_templates_are_rendered_with_their_project_and_item(tmp_path: Path) -> None:
    """Each output of a loop sees its own item."""
    manifest = "files: [{template: a.j2, target: '{api.name}', foreach: apis as api, owner: once, mode: '0755'}]\n"
    spec = CHAT_SPEC.replace("servers:", "  - {path: /v1/models, method: GET}\nservers:")

    files = rendered(tmp_path, {"a.j2": "{{ project.name }}: {{ api.path }}\n"}, manifest=manifest, spec=spec).files

    assert [(file.path, file.content, file.owner, file.mode) for file in files] == [
        ("chat_completions", b"flashgen: /v1/chat/completions\n", "once", 0o755),
        ("models", b"flashgen: /v1/models\n", "once", 0o755),
    ]


def test_macros_lie_beside_the_templates(tmp_path: Path) -> None:
    """As in any cookiecutter template."""
    templates = {
        "x.j2": '{% import "m.j2" as m %}{{ m.twice("a") }}\n',
        "../templates/m.j2": "{% macro twice(t) %}{{ t }}{{ t }}{% endmacro %}",
    }

    (file,) = rendered(tmp_path, templates).files

    assert file.content == b"aa\n"


def test_block_lines_leave_no_trace(tmp_path: Path) -> None:
    """A template looks like its output."""
    template = "servers:\n  {% for server in project.servers %}\n  - {{ server.name }}\n  {% endfor %}\n"

    assert text_of(tmp_path, template) == "servers:\n  - some-model\n"


@pytest.mark.parametrize(
    "expression",
    [
        "project.description",
        "project.description ~ ''",
        "'%s' % project.description",
        "'{}'.format(project.description)",
        "[project.description] | join",
        "project.description | upper",
        "project.description | string",
        "project.description | tojson",
        "[project.description]",
        "project.description._text",
        "project.description | trim",
        "project.description | replace('a', 'b')",
    ],
)
def test_user_text_leaves_a_template_only_through_a_quoting_filter(tmp_path: Path, expression: str) -> None:
    """Twelve ways to leak it are errors."""
    with pytest.raises(InternalError):
        text_of(tmp_path, f"{{{{ {expression} }}}}\n", spec=f"description: secret\n{CHAT_SPEC}")


@pytest.mark.parametrize(
    "expression",
    [
        "missing",
        "project.missing",
        "project.runtime_version.missing",
        "none",
        "true",
        "project.servers",
        "project",
        "range(3)",
        "''.__class__.__mro__",
        "project.__init__.__globals__",
        "lipsum()",
        "[1] | random",
        "now()",
        "random_ascii_string(3)",
    ],
)
def test_what_is_no_text_or_number_does_not_print(tmp_path: Path, expression: str) -> None:
    """Undefined names, `None`, objects, Python's insides and chance are errors."""
    with pytest.raises(InternalError):
        text_of(tmp_path, f"{{{{ {expression} }}}}\n")


def test_an_error_names_template_and_line(tmp_path: Path) -> None:
    """Whoever writes a blueprint finds the place."""
    with pytest.raises(InternalError, match=r"template `x\.j2`, line 2: .*missing"):
        text_of(tmp_path, "one\n{{ missing }}\n")
    with pytest.raises(InternalError, match=r"template `y\.j2`, line 3"):
        rendered(tmp_path, {"y.j2": "one\n\n{% if %}\n"})


def test_a_missing_template_is_named(tmp_path: Path) -> None:
    """The manifest lists a file that is not there."""
    with pytest.raises(InternalError, match=r"gone\.j2"):
        rendered(tmp_path, {}, manifest="files: [{template: gone.j2}]\n")


def test_rendering_leaves_the_working_directory_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cookiecutter works in the template's folder and on disk; afterwards neither shows."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = Path.cwd()

    rendered(tmp_path, {"a/b.j2": "x\n"})

    assert Path.cwd() == before
    assert list(temporary.iterdir()) == []


def test_compiled_templates_are_kept_privately(tmp_path: Path) -> None:
    """They are code: only the user may write there."""
    first = rendered(tmp_path, {"x.j2": "{{ project.name }}\n"}, cache_folder=tmp_path / "cache")
    second = rendered(tmp_path, {"x.j2": "{{ project.name }}\n"}, cache_folder=tmp_path / "cache")

    (folder,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir())
    assert first == second


def test_a_cache_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    """Else a stranger's byte code would run here."""
    rendered(tmp_path, {"x.j2": "x\n"}, cache_folder=tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    for file in folder.iterdir():
        file.unlink()
    folder.chmod(0o777)

    rendered(tmp_path, {"x.j2": "x\n"}, cache_folder=tmp_path / "cache")

    assert list(folder.iterdir()) == []


def test_templates_give_the_same_bytes_through_cookiecutter_itself(tmp_path: Path) -> None:
    """Blueprints are cookiecutter templates: without loops and conditions its own command renders them alike."""
    template = "# {{ cookiecutter.project.name }}\nline\n\n  indented\n"
    (ours,) = rendered(tmp_path, {"x.txt.j2": template}).files

    context = {"cookiecutter": {"name": "out", "project": {"name": "flashgen"}}}
    generate_files(tmp_path / "blueprint", context, tmp_path, accept_hooks=False)

    assert (tmp_path / "out" / "x.txt.j2").read_bytes() == ours.content
