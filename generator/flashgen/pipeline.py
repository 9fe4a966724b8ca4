"""The stages of a build in their order, and nothing else."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from flashgen.document import Document
from flashgen.project_folder import locate_project
from flashgen.resolved import ResolvedProject
from flashgen.resources import data_dir
from flashgen.runtime_wheel import runtime_wheel
from flashgen.stages.load import load
from flashgen.stages.plan import plan
from flashgen.stages.render import render
from flashgen.stages.resolve import project_name, resolve
from flashgen.stages.validate import validate
from flashgen.stages.write import write
from flashgen.user_cache import cache_folder
from flashgen.write_report import WriteReport


class Located(NamedTuple):
    """A resolved project and the folder that is or will be its own."""

    project: ResolvedProject
    folder: Path


class Built(NamedTuple):
    """A project after its build."""

    project: ResolvedProject
    folder: Path
    report: WriteReport

    # Of all files that the build produces, relative to the folder.
    paths: tuple[str, ...]


def build(spec_path: Path, *, output: Path | None = None, check: bool = False) -> Built:
    """Builds the project of a spec; with `check` writes nothing and reports what would change."""
    return emit(understand(spec_path, output=output), check=check)


def understand(spec_path: Path, *, output: Path | None = None) -> Located:
    """The first half: from the spec to everything that is known about its project."""
    document = load(spec_path)
    spec = validate(document)
    folder = locate_project(spec_path, project_name(spec), output)
    project = resolve(spec, project_folder=folder, spec_sha256=_digest(document), wheel=runtime_wheel())
    return Located(project=project, folder=folder)


def emit(located: Located, *, check: bool = False) -> Built:
    """The second half: from the project to its files."""
    build_plan = plan(located.project, data_dir("blueprints") / "service")
    rendered = render(build_plan, cache_folder=cache_folder())
    report = write(rendered, located.folder, check=check)
    paths = tuple(file.path for file in rendered.files)
    return Built(project=located.project, folder=located.folder, report=report, paths=paths)


def _digest(document: Document) -> str:
    """SHA-256 of what the spec says; its comments and layout do not count."""
    return hashlib.sha256(json.dumps(document.data).encode()).hexdigest()
