"""Write a first spec into a folder, with what an editor needs to help with it."""

import argparse
from pathlib import Path

from flashgen import naming
from flashgen.checkpoints import Checkpoint
from flashgen.errors import TreeError, UsageError
from flashgen.project_folder import absolute, relative_path
from flashgen.project_tree import Step, Write, apply
from flashgen.protocols import TEXT_GENERATION
from flashgen.record import FILES_PATH, IGNORE_PATH, IGNORE_TEXT, files_text
from flashgen.report import Report
from flashgen.resources import data_dir
from flashgen.starter_spec import SCHEMA_PATH, first_spec

SPEC_NAME = "flashgen.yaml"

# Small enough for any machine, and it chats.
_DEFAULT_MODEL = "Qwen/Qwen3-0.6B"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`[DIR] [--model URI]`."""
    parser.add_argument("directory", metavar="DIR", nargs="?", type=Path, default=Path(), help="default: this folder")
    parser.add_argument(
        "--model",
        metavar="URI",
        default=_DEFAULT_MODEL,
        help="owner/name on the hub, or a folder; default: %(default)s",
    )


def run(arguments: argparse.Namespace) -> Report:
    """Writes the spec, its schema and an empty build record."""
    folder = absolute(arguments.directory)
    if (folder / SPEC_NAME).exists():
        raise TreeError(f"`{arguments.directory / SPEC_NAME}` exists already", hint="edit it, or name another folder")
    steps = _steps(folder, arguments.model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"`{arguments.directory}` cannot be a folder: {error.strerror}") from error
    apply(folder, steps)
    cd = [] if folder == Path.cwd() else [f"  cd {relative_path(folder, Path.cwd())}"]
    return Report(
        (
            *(f"create   {step.path}" for step in steps if isinstance(step, Write)),
            "",
            "next:",
            *cd,
            f"  edit {SPEC_NAME}      its comments explain it",
            "  flashgen build         writes the project",
            "  flashgen run           serves it on this machine",
        )
    )


def _steps(folder: Path, model: str) -> list[Step]:
    uri, task = _as_seen_from(folder, model)
    name = naming.dns_label(folder.name) or "service"
    # An empty record makes the folder a project: `flashgen build` writes here and not beside it.
    texts = {
        SCHEMA_PATH: (data_dir("schemas") / "v1" / "spec.schema.json").read_text(encoding="utf-8"),
        IGNORE_PATH: IGNORE_TEXT,
        FILES_PATH: files_text([]),
        SPEC_NAME: first_spec(name, uri, task),
    }
    return [Write(path, text.encode()) for path, text in texts.items()]


def _as_seen_from(folder: Path, model: str) -> tuple[str, str]:
    """The model's uri in a spec that lies in `folder`, and its task; a relative path was relative to here."""
    path = Path(model)
    if not model or not path.is_dir():
        return model, TEXT_GENERATION
    task = Checkpoint(path).task or TEXT_GENERATION
    if path.is_absolute():
        return model, task
    relative = relative_path(path, folder)
    return relative if relative.startswith(".") else f"./{relative}", task
