"""Models on this machine's disk: the runtime's own command, in a Python that has the runtime."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from flashgen.errors import UsageError
from flashgen.runtime_interpreter import shared_interpreter
from flashgen.user_cache import cache_folder

# So that usage lines say what was typed.
_PROGRAM_VARIABLE = "FLASHGEN_PROGRAM"


def execute(arguments: Sequence[str], say: Callable[[str], None]) -> NoReturn:
    """Becomes `python -m flashgen_runtime models …`, whose exit codes are ours; results alone go to stdout."""
    cache = cache_folder()
    if cache is None:
        raise UsageError("there is no folder for caches", hint="set `XDG_CACHE_HOME` to one")
    python = shared_interpreter(cache, say)
    sys.stdout.flush()
    command = [python, "-m", "flashgen_runtime", "models", *arguments]
    os.execve(python, command, {**os.environ, _PROGRAM_VARIABLE: "flashgen models"})
