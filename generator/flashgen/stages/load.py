"""From a path to a `Document`: reads the file; `yaml_reader` reads the YAML in it."""

from pathlib import Path

from flashgen.document import Document
from flashgen.errors import UsageError
from flashgen.yaml_reader import read_document
from flashgen.yaml_text import MAX_BYTES


def load(path: Path) -> Document:
    """The spec at `path`.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        SpecError: it is not YAML as a spec may use it.
    """
    return read_document(path, _read(path))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)  # one more, so that a larger file shows
    except FileNotFoundError as error:
        raise UsageError(f"no such file: `{path}`", hint="`flashgen init` writes a first spec") from error
    except IsADirectoryError as error:
        raise UsageError(
            f"`{path}` is a folder, not a spec", hint=f"name the file: `{path / 'flashgen.yaml'}`"
        ) from error
    except (OSError, ValueError) as error:  # `ValueError`: the path itself holds a NUL
        raise UsageError(f"`{path}` cannot be read: {error}") from error
