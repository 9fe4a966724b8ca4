"""Hop 6: renders every planned file with cookiecutter, one file at a time, and gives the texts back.

cookiecutter wants the template folder as working directory and writes to disk. The working directory changes once per
build; each output goes to a temporary folder, always under one name, and is read back from there. Target paths were
checked by `plan` and never reach cookiecutter. Its hooks, prompts, replay and configuration are never used.
"""

import tempfile
from pathlib import Path

import jinja2
from cookiecutter.generate import generate_file  # type: ignore[import-untyped]  # it has no types
from cookiecutter.utils import work_in  # type: ignore[import-untyped]  # as above

from flashgen import __version__
from flashgen.build_plan import BuildPlan, PlannedFile
from flashgen.errors import InternalError
from flashgen.producers import BINARY, produce
from flashgen.rendered import RenderedFile, RenderedProject
from flashgen.resolved import ResolvedProject
from flashgen.template_environment import OUTPUT_NAME, TemplateEnvironment, compiled_templates
from flashgen.user_text import plain_text


def render(plan: BuildPlan, *, cache_folder: Path | None) -> RenderedProject:
    """All outputs in memory; raises `InternalError` for a template that fails. Main thread only.

    Args:
        cache_folder: keeps compiled templates; `None` compiles them anew.
    """
    compiled = compiled_templates(cache_folder)
    environment = TemplateEnvironment(
        loader=jinja2.FileSystemLoader([".", "../templates"]), bytecode_cache=compiled, cache_size=-1
    )
    with tempfile.TemporaryDirectory(prefix="flashgen-") as staging, work_in(plan.template_folder):
        files = tuple(_rendered(file, plan.project, Path(staging), environment) for file in plan.files)
    if compiled is not None:
        compiled.save()
    return RenderedProject(
        files=files,
        generator_version=__version__,
        spec_sha256=plan.project.spec_sha256,
        spec_path=plain_text(plan.project.spec_path),
    )


def _rendered(
    file: PlannedFile, project: ResolvedProject, staging: Path, environment: TemplateEnvironment
) -> RenderedFile:
    if file.producer is not None:
        content = produce(file.producer, project)
    else:
        assert file.template is not None, "a planned file has a template or a producer"
        content = _render_template(file.template, {"project": project, **file.context}, staging, environment)
    return RenderedFile(
        file_id=file.file_id,
        path=file.path,
        content=content,
        owner=file.owner,
        mode=file.mode,
        is_binary=file.producer in BINARY,
    )


def _render_template(
    template: str, values: dict[str, object], staging: Path, environment: TemplateEnvironment
) -> bytes:
    # `_new_lines` keeps cookiecutter from opening the template once more to detect its line ends.
    context = {"cookiecutter": {"_new_lines": "\n", **values}, **values}
    try:
        generate_file(str(staging), template, context, environment)
    except (jinja2.TemplateError, FileNotFoundError, TypeError, ValueError) as error:
        raise InternalError(f"template `{template}`{_line_of(error)}: {error}") from error
    return (staging / OUTPUT_NAME).read_bytes()


def _line_of(error: Exception) -> str:
    """`, line 3`: where in the template it happened; Jinja maps tracebacks to template lines."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f", line {error.lineno}"
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(".j2"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f", line {line}" if line is not None else ""
