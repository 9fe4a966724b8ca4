"""The command line: finds the verb, imports only its module, prints what it reports and sets the exit code.

Exit codes: 0 done or current, 1 the spec is wrong, 2 bad usage, 3 the tree needs you, 4 our fault.
"""

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from flashgen import __version__

if TYPE_CHECKING:  # what only a command needs: `--help` takes half the time without
    from flashgen.errors import FlashgenError
    from flashgen.report import Report

# Verbs are modules of `commands`; their help stands here so that `--help` imports none of them.
COMMANDS = {
    "init": "write a first spec into a folder",
    "validate": "check a spec and say everything that is wrong with it",
    "build": "write or update the project of a spec",
    "run": "serve a spec, a folder with a model, or a model from the hub on this machine",
    "models": "pull, list, verify, prepare, remove, load and try models",
}

_TRACEBACK_VARIABLE = "FLASHGEN_TRACEBACK"

# What a shell reports for a process that SIGPIPE or SIGINT ended.
_EXIT_BROKEN_PIPE = 141
_EXIT_INTERRUPTED = 130
_EXIT_OUR_FAULT = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code of the process."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its escape instead of an exception.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run_to_code(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    return code


def _run_to_code(argv: list[str]) -> int:
    """The exit code, also where argparse ends the process: after help, the version or a mistake."""
    try:
        return _run(argv)
    except SystemExit as end:
        return int(end.code or 0)


def _run(argv: list[str]) -> int:
    if not argv:
        _main_parser().print_help()
        return 0
    if argv[0] not in COMMANDS:
        return _without_command(argv)
    from flashgen.errors import FlashgenError  # as above

    try:
        return _print(_run_command(argv[0], argv[1:]))
    except FlashgenError as error:
        _print_error(error)
        return error.exit_code
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        if os.environ.get(_TRACEBACK_VARIABLE):
            raise
        _complain(f"error: flashgen failed: {type(error).__name__}: {error}")
        _complain(f"\nhint: this is our fault, not your spec's; `{_TRACEBACK_VARIABLE}=1` in front shows where")
        return _EXIT_OUR_FAULT


def _run_command(name: str, argv: list[str]) -> "Report":
    # What a command makes lives until it ends: looking for garbage takes a tenth of its time and finds none.
    gc.disable()
    command = import_module(f"flashgen.commands.{name}")
    if hasattr(command, "execute"):
        # The runtime's own command: its arguments are none of ours, `--help` included.
        executed: Report = command.execute(argv, _complain)
        return executed
    parser = argparse.ArgumentParser(prog=f"flashgen {name}", description=command.__doc__, allow_abbrev=False)
    if hasattr(command, "add_arguments"):
        command.add_arguments(parser)
    arguments = parser.parse_args(argv)
    # For a command that serves until it is stopped: a line now, not when it returns.
    arguments.say = _say
    report: Report = command.run(arguments)
    return report


def _main_parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="flashgen",
        usage="flashgen COMMAND [ARGUMENTS]",
        description="One YAML file becomes a serving project that you own.",
        epilog=f"commands:\n{verbs}\n\n`flashgen COMMAND --help` says more about one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"flashgen {__version__}")
    return parser


def _without_command(argv: list[str]) -> int:
    """`--help`, `--version`, or a mistake."""
    parser = _main_parser()
    if argv[0].startswith("-"):
        parser.parse_args(argv[:1])
    from difflib import get_close_matches  # only for mistakes

    close = get_close_matches(argv[0], COMMANDS, n=1)
    _complain(f"error: `{argv[0]}` is no command of flashgen")
    known = ", ".join(f"`{name}`" for name in COMMANDS)
    _complain(f"\nhint: did you mean `{close[0]}`?" if close else f"\nhint: the commands are {known}")
    return 2


def _print(report: "Report") -> int:
    for notice in report.notices:
        _complain(notice)
    for line in report.lines:
        print(line)
    return report.exit_code


def _print_error(error: "FlashgenError") -> None:
    from flashgen.errors import SpecError  # only for mistakes, as the next

    if isinstance(error, SpecError):
        from flashgen.diagnostics import render_text

        sys.stderr.write(render_text(error.diagnostics, path=error.path, text=error.text))
        return
    _complain(f"error: {error}")
    if error.hint:
        _complain(f"\nhint: {error.hint}")


def _complain(line: str) -> None:
    print(line, file=sys.stderr)


def _say(line: str) -> None:
    print(line, flush=True)
