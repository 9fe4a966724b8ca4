"""Projects that the real blueprint gives for a spec, in memory or on disk."""

from pathlib import Path
from tempfile import TemporaryDirectory

from flashgen.build_plan import BuildPlan
from flashgen.rendered import RenderedProject
from flashgen.resources import data_dir
from flashgen.stages.plan import plan
from flashgen.stages.render import render
from tests.compiler.projects import resolved

# Kept for all tests of one run.
_COMPILED_TEMPLATES = TemporaryDirectory(prefix="flashgen-templates-")

BLUEPRINT = data_dir("blueprints") / "service"


def planned(folder: Path, spec: str, *, file_name: str = "flashgen.yaml") -> BuildPlan:
    """The files of the project that the text of a spec gives."""
    return plan(resolved(folder, spec, file_name=file_name), BLUEPRINT)


def rendered(folder: Path, spec: str, *, file_name: str = "flashgen.yaml") -> RenderedProject:
    """The project that the text of a spec gives."""
    return render(planned(folder, spec, file_name=file_name), cache_folder=Path(_COMPILED_TEMPLATES.name))


def write(project: RenderedProject, folder: Path) -> Path:
    """All files of a project on disk; gives the folder."""
    for file in project.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
    return folder


def texts(project: RenderedProject) -> dict[str, str]:
    """All texts of a project, by path."""
    return {file.path: file.content.decode() for file in project.files if not file.is_binary}
