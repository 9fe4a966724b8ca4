"""`python -m flashgen_runtime`: the processes of a generated project, the check of its configuration, and models."""

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code, unless the process it becomes has one of its own."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["models"]:
        # Deferred: the processes of a project need none of it. It has a parser of its own.
        from flashgen_runtime.models_command.main import main as models

        return models(arguments[1:])
    options = _parser().parse_args(arguments)
    match options.command:
        case "serve-api":
            return _run_script(options.folder, "api/main.py")
        case "serve-worker":
            return _run_script(options.folder, f"workers/{options.server.replace('-', '_')}/main.py")
        case _:
            return _check_config(options.file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flashgen_runtime", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve_api = commands.add_parser("serve-api", help="run the API server of a generated project")
    serve_api.add_argument("folder", type=Path, metavar="DIR", help="the project's folder")
    serve_worker = commands.add_parser("serve-worker", help="run a worker of a generated project")
    serve_worker.add_argument("folder", type=Path, metavar="DIR", help="the project's folder")
    serve_worker.add_argument("server", metavar="NAME", help="the server's name in the spec")
    commands.add_parser("models", help="pull, list, verify, prepare, remove, load and try models", add_help=False)
    check_config = commands.add_parser("check-config", help="say what is wrong with a configuration file, if anything")
    check_config.add_argument("file", type=Path, metavar="FILE", help="usually config/service.yaml")
    return parser


def _run_script(folder: Path, script: str) -> int:
    """Becomes the project's own program: its folder is the working directory and the first place of imports."""
    if not folder.is_dir():
        return _usage_error(f"{folder} is not a folder")
    if not (folder / script).is_file():
        return _usage_error(
            f"{folder} has no {script}{_known_workers(folder) if script.startswith('workers/') else ''}"
        )
    os.chdir(folder)
    sys.path[0] = str(Path.cwd())
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")
    return 0


def _known_workers(folder: Path) -> str:
    names = sorted(path.parent.name for path in folder.glob("workers/*/main.py"))
    return f"; its workers are {', '.join(names)}" if names else ""


def _check_config(file: Path) -> int:
    # Deferred: only this command reads configuration itself.
    from flashgen_runtime.config import load_config
    from flashgen_runtime.errors import EXIT_CONFIG, ConfigError

    try:
        load_config(file)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CONFIG
    return 0


def _usage_error(problem: str) -> int:
    sys.stderr.write(f"error: {problem}\n")
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
