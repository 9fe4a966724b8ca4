"""The compiler's exceptions. Users' mistakes in a spec are `Diagnostic` values; `SpecError` carries them.

FlashgenError
├── SpecError        the spec is wrong               exit 1
├── UsageError       the command line is wrong       exit 2
├── TreeError        the project's tree needs you    exit 3
└── InternalError    our fault                       exit 4
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # diagnostics are data of this tree and never needed to build it
    from flashgen.diagnostics import Diagnostic


class FlashgenError(Exception):
    """Base of all; `str(error)` is the message for users, `hint` what to do about it."""

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class SpecError(FlashgenError):
    """Everything that is wrong with a spec, with the text that the diagnostics point into."""

    exit_code = 1

    def __init__(self, diagnostics: Iterable["Diagnostic"], *, path: Path, text: str) -> None:
        self.diagnostics = tuple(diagnostics)
        self.path = path
        self.text = text
        super().__init__(f"{path}: " + "; ".join(diagnostic.message for diagnostic in self.diagnostics))


class UsageError(FlashgenError):
    """The command cannot mean what it says: a file that is not there, options that exclude each other."""

    exit_code = 2


class TreeError(FlashgenError):
    """The project's tree needs a person: edited, conflicting or stale files. Nothing was written."""

    exit_code = 3

    def __init__(self, message: str, *, paths: Iterable[str] = (), hint: str | None = None) -> None:
        self.paths = tuple(paths)
        super().__init__(message, hint=hint)


class InternalError(FlashgenError):
    """A mistake of flashgen's own, such as a blueprint that does not render."""

    exit_code = 4
