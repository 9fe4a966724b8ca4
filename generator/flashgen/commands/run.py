"""Serve a spec, a folder with a model, or a model from the hub on this machine, until Ctrl-C."""

import argparse
import gc
import shutil
from collections.abc import Callable
from pathlib import Path

from flashgen.errors import TreeError, UsageError
from flashgen.local_service import LocalService
from flashgen.pipeline import Located, build, emit, understand
from flashgen.record import LOCK_PATH
from flashgen.report import Report
from flashgen.resolved import ResolvedProject
from flashgen.run_target import ModelTarget, SpecTarget, machine_resources, parse_target
from flashgen.runtime_interpreter import interpreter
from flashgen.starter_spec import model_spec
from flashgen.user_cache import cache_folder
from flashgen.user_text import plain_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`[SPEC | FOLDER | HUB-ID] [--port N] [--timings]`."""
    parser.add_argument(
        "target", metavar="SPEC | FOLDER | HUB-ID", nargs="?", help="what to serve; default: flashgen.yaml"
    )
    parser.add_argument("--port", metavar="N", type=_port, help="the API's port; default: 8000, or the next free one")
    parser.add_argument("--timings", action="store_true", help="say what the start took, stage by stage")


def run(arguments: argparse.Namespace) -> Report:
    """Builds, installs what is missing, serves; returns when a signal came."""
    say: Callable[[str], None] = arguments.say
    target = parse_target(arguments.target)
    folder = _cache() / target.key
    built = _built(target, folder, say)
    for notice in built.project.notices:
        say(f"note: {plain_text(notice)}")
    service = LocalService(
        built.project,
        built.folder,
        python=interpreter(built.project, built.folder, say),
        models_folder=_link_models(built.project, folder / "models"),
        port=arguments.port,
    )
    # `cli` switches it off for commands that end soon.
    gc.enable()
    say(f"starting {built.project.name} at {service.url}")
    return Report((), exit_code=service.run(say, tells_timings=arguments.timings))


def _built(target: SpecTarget | ModelTarget, folder: Path, say: Callable[[str], None]) -> Located:
    if isinstance(target, ModelTarget):
        return _built_in_cache(_written_spec(target, folder), folder)
    located = understand(target.path)
    if not (located.folder / LOCK_PATH).is_file():
        return _built_in_cache(target.path, folder)
    if not _is_current(located):
        say(f"note: {located.folder} is not what the spec asks for and runs as it is; `flashgen build` updates it")
    return located


def _is_current(located: Located) -> bool:
    """Whether the user's own project, which only `flashgen build` changes, is what the spec asks for."""
    try:
        return emit(located, check=True).report.is_current
    except TreeError:
        return False


def _built_in_cache(spec_path: Path, folder: Path) -> Located:
    project_folder = folder / "project"
    try:
        built = build(spec_path, output=project_folder)
    except TreeError:
        # Nothing in the cache is anybody's work.
        shutil.rmtree(project_folder)
        built = build(spec_path, output=project_folder)
    return Located(project=built.project, folder=built.folder)


def _written_spec(target: ModelTarget, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "flashgen.yaml"
    path.write_text(model_spec(target.name, target.uri, target.task, machine_resources()), encoding="utf-8")
    return path


def _link_models(project: ResolvedProject, folder: Path) -> Path:
    """A folder with one link per local model, as the workers look for them; right links stay, for a run beside us."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {model.folder: model.path_on_this_machine for server in project.servers for model in server.all_models}
    for name, target in models.items():
        if name is None or target is None:
            continue
        link = folder / name
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)
    return folder


def _cache() -> Path:
    folder = cache_folder()
    if folder is None:
        raise UsageError("there is no folder for caches", hint="set `XDG_CACHE_HOME` to one")
    return folder / "run"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: ports are 1 to 65535")
    return int(text)
