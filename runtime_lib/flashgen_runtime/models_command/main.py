"""Runs one verb and turns what it raises into a message and an exit code.

Exit codes: 0 done, 1 what was named is wrong where it comes from, 2 bad usage, 3 something here needs you (no room,
nobody answers, a damaged file), 4 our fault.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from flashgen_runtime.errors import DownloadError, NotWrittenError, RequestError, ServingError
from flashgen_runtime.models_command.arguments import parse
from flashgen_runtime.models_command.errors import EXIT_INTERRUPTED, AttentionError, UsageError
from flashgen_runtime.models_command.terminal import complain

EXIT_WRONG = 1
EXIT_USAGE = 2
EXIT_NEEDS_YOU = 3
EXIT_OUR_FAULT = 4

# What a shell reports for a process that SIGPIPE ended.
EXIT_BROKEN_PIPE = 141

_TRACEBACK_VARIABLE = "FLASHGEN_TRACEBACK"


def main(arguments: Sequence[str]) -> int:
    """Runs `models …`; gives its exit code."""
    options = parse(arguments)
    try:
        # Deferred: a verb imports what it needs, and only the last ones need torch.
        verb = import_module(f"flashgen_runtime.models_command.{options.module}")
        code: int = getattr(verb, options.function)(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        complain("\ninterrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except ServingError as error:
        complain(f"error: {error}")
        return _exit_code(error)
    except Exception as error:
        if os.environ.get(_TRACEBACK_VARIABLE):
            raise
        complain(f"error: flashgen failed: {type(error).__name__}: {error}")
        complain(f"\nhint: this is our fault; `{_TRACEBACK_VARIABLE}=1` in front shows where")
        return EXIT_OUR_FAULT
    return code


def _exit_code(error: ServingError) -> int:
    from flashgen_runtime.loader.store import StoreError, UnknownModelError  # nothing but verbs need it before

    if isinstance(error, (UsageError, UnknownModelError, RequestError)):
        return EXIT_USAGE
    needs_you = (AttentionError, DownloadError, NotWrittenError, StoreError)
    return EXIT_NEEDS_YOU if isinstance(error, needs_you) else EXIT_WRONG
