"""Hop 5: decides which files a project has, from the blueprint's manifest `blueprint.yaml`.

The manifest lists `files`, each with `template` (below `{{cookiecutter.name}}/`) or `produce` (a name in `producers`),
and optionally `target`, `owner`, `mode`, `foreach` and `when`. Nothing in it is evaluated: `foreach` is `apis as api`
or `servers as server`, `{api.name}` in a target reads one attribute, and `when` compares words (see `conditions`).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from flashgen.build_plan import BuildPlan, Owner, PlannedFile
from flashgen.conditions import holds
from flashgen.errors import InternalError
from flashgen.project_paths import path_problem
from flashgen.resolved import ResolvedProject

_KEYS = frozenset({"template", "produce", "target", "owner", "mode", "foreach", "when"})
_OWNERS = frozenset({"managed", "once"})
_MODES = {"0644": 0o644, "0755": 0o755}
_LOOPS = {"apis as api": ("apis", "api"), "servers as server": ("servers", "server")}
_PLACEHOLDER = re.compile(r"\{(\w+)\.(\w+)\}")

# libyaml where PyYAML was built with it. The manifest is ours: nesting bombs do not arise.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def plan(project: ResolvedProject, blueprint: Path) -> BuildPlan:
    """The files of `project`, sorted by path; raises `InternalError` for a manifest that cannot be followed."""
    manifest = yaml.load((blueprint / "blueprint.yaml").read_text(encoding="utf-8"), Loader=_Loader)
    files = [file for entry in manifest["files"] for file in _files_of(entry, project)]
    _refuse_duplicates(files)
    return BuildPlan(
        template_folder=_template_folder(blueprint),
        project=project,
        files=tuple(sorted(files, key=lambda file: file.path)),
    )


def _files_of(entry: dict[str, Any], project: ResolvedProject) -> Iterator[PlannedFile]:
    _check_entry(entry)
    for context in _contexts(entry, project):
        if holds(entry.get("when") or {}, project, context):
            yield _planned_file(entry, project, context)


def _check_entry(entry: dict[str, Any]) -> None:
    unknown = sorted(entry.keys() - _KEYS)
    if unknown:
        raise InternalError(f"`{unknown[0]}` is no key of a file in blueprint.yaml: {entry}")
    if ("template" in entry) == ("produce" in entry):
        raise InternalError(f"a file in blueprint.yaml has either `template` or `produce`: {entry}")
    if "produce" in entry and "target" not in entry:
        raise InternalError(f"`produce` needs `target`: {entry}")
    if entry.get("owner", "managed") not in _OWNERS or entry.get("mode", "0644") not in _MODES:
        raise InternalError(f'`owner` is managed or once, `mode` is "0644" or "0755": {entry}')


def _contexts(entry: dict[str, Any], project: ResolvedProject) -> list[dict[str, object]]:
    if "foreach" not in entry:
        return [{}]
    if entry["foreach"] not in _LOOPS:
        raise InternalError(f"`foreach` is one of {', '.join(sorted(_LOOPS))}, not `{entry['foreach']}`")
    collection, variable = _LOOPS[entry["foreach"]]
    return [{variable: item} for item in getattr(project, collection)]


def _planned_file(entry: dict[str, Any], project: ResolvedProject, context: dict[str, object]) -> PlannedFile:
    path = _target(entry, {"project": project, **context})
    problem = path_problem(path)
    if problem:
        raise InternalError(f"`{path}` {problem}")
    names = [cast("Any", item).name for item in context.values()]
    return PlannedFile(
        file_id="#".join([entry.get("template") or entry["produce"], *names]),
        path=path,
        template=entry.get("template"),
        producer=entry.get("produce"),
        owner=cast("Owner", entry.get("owner", "managed")),
        mode=_MODES[entry.get("mode", "0644")],
        context=context,
    )


def _target(entry: dict[str, Any], values: dict[str, object]) -> str:
    if "target" not in entry:
        return default_target(entry["template"])

    def attribute(found: re.Match[str]) -> str:
        value = getattr(values.get(found[1]), found[2], None)
        if not isinstance(value, str):
            raise InternalError(f"`{found[0]}` in `{entry['target']}` is no text of this output")
        return value

    return _PLACEHOLDER.sub(attribute, entry["target"])


def default_target(template: str) -> str:
    """`dot_github/workflows/ci.yml.j2` → `.github/workflows/ci.yml`."""
    parts = template.removesuffix(".j2").split("/")
    return "/".join(f".{part.removeprefix('dot_')}" if part.startswith("dot_") else part for part in parts)


def _refuse_duplicates(files: list[PlannedFile]) -> None:
    # Folded, because two such paths are one file on macOS and Windows.
    seen: dict[str, PlannedFile] = {}
    for file in files:
        other = seen.setdefault(file.path.casefold(), file)
        if other is not file:
            raise InternalError(f"`{other.file_id}` and `{file.file_id}` are both written to `{file.path}`")


def _template_folder(blueprint: Path) -> Path:
    # The same rule as cookiecutter's: the folder whose name is a template.
    for folder in sorted(blueprint.iterdir()):
        if "cookiecutter" in folder.name and "{{" in folder.name and "}}" in folder.name:
            return folder
    raise InternalError(f"`{blueprint.name}` has no folder called `{{{{cookiecutter.name}}}}`")
