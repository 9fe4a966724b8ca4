"""Write or update the project of a spec. Your edits are never overwritten; see the words in the report."""

import argparse
from pathlib import Path

from flashgen.last_build import LastBuild, recall, remember
from flashgen.project_folder import relative_path
from flashgen.report import Report
from flashgen.user_text import plain_text
from flashgen.write_report import FileChange

DEFAULT_SPEC = Path("flashgen.yaml")

_STALE = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`[SPEC] [-o DIR] [--check]`."""
    parser.add_argument("spec", metavar="SPEC", nargs="?", type=Path, default=DEFAULT_SPEC, help="default: %(default)s")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help="the project's folder; default: the spec's own when that is a project, else one beside it with its name",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 3 when the project is not what the spec asks for"
    )


def run(arguments: argparse.Namespace) -> Report:
    """Builds, or with `--check` compares."""
    last = recall(arguments.spec, arguments.output)
    targets: tuple[str, ...] = ()
    if last is None:
        last, targets = _build(arguments)
    lines = _columns(last.report.changes)
    folder = _shown(last.folder)
    if arguments.check:
        return _check_report(last, lines, folder)
    if last.report.is_current:
        return Report((*lines, f"nothing changed: {folder} is what the spec asks for"), notices=last.notices)
    return Report((*lines, "", *_summary(last, folder, targets)), notices=last.notices)


def _build(arguments: argparse.Namespace) -> tuple[LastBuild, tuple[str, ...]]:
    from flashgen.pipeline import build  # a build that changes nothing does without

    built = build(arguments.spec, output=arguments.output, check=arguments.check)
    notices = tuple(f"note: {plain_text(notice)}" for notice in built.project.notices)
    last = LastBuild(folder=built.folder, report=built.report, notices=notices)
    if last.report.is_current or not arguments.check:
        models = [model for server in built.project.servers for model in server.all_models]
        checkpoints = [model.path_on_this_machine for model in models if model.path_on_this_machine is not None]
        remember(last, arguments.spec, arguments.output, paths=list(built.paths), checkpoints=checkpoints)
    return last, built.project.targets


def _check_report(last: LastBuild, lines: list[str], folder: str) -> Report:
    if last.report.is_current:
        return Report((*lines, f"{folder} is what the spec asks for"), notices=last.notices)
    advice = f"{folder} is not what the spec asks for; `flashgen build` would do the above"
    return Report((*lines, "", advice), exit_code=_STALE, notices=last.notices)


def _columns(changes: tuple[FileChange, ...]) -> list[str]:
    width = max((len(change.path) for change in changes if change.note), default=0)
    return [
        f"{change.word:8} {change.path:{width if change.note else 0}}  {change.note}".rstrip() for change in changes
    ]


def _summary(last: LastBuild, folder: str, targets: tuple[str, ...]) -> list[str]:
    written = sum(change.is_stale for change in last.report.changes)
    steps = [] if folder == "." else [f"cd {folder}"]
    steps += ["make test", "make run"]
    if "compose" in targets:
        steps.append("docker compose up --build")
    if "kubernetes" in targets:
        steps.append("kubectl apply --kustomize deploy/k8s/overlays/dev")
    changed = f"{written} {'file' if written == 1 else 'files'} changed in {folder}"
    return [changed, "", "next, as README.md explains:", *(f"  {step}" for step in steps)]


def _shown(folder: Path) -> str:
    """Relative to where the user is, unless that climbs far up."""
    relative = relative_path(folder, Path.cwd())
    return str(folder) if relative.startswith("../..") else relative
