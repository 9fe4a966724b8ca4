"""The Jinja environment of blueprints: sandboxed, strict, deterministic; compiled templates are kept between builds."""

import marshal
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
from jinja2.bccache import Bucket
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flashgen import __version__
from flashgen.filters import FILTERS

# cookiecutter writes every output there.
OUTPUT_NAME = "output"


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """What a template sees besides its values: the filters of `filters` and Jinja's own without randomness."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_printable,
            # Looking for constants to fold takes an eighth of the compilation, and templates have hardly any.
            optimized=False,
            **options,
        )
        self.filters.update(FILTERS)
        # Equal input gives equal output.
        del self.filters["random"], self.globals["lipsum"]
        self._output_name = super().from_string(OUTPUT_NAME)

    def from_string(self, *_: Any, **__: Any) -> jinja2.Template:
        """The name of every output, whatever its template is called: cookiecutter compiles and renders names."""
        return self._output_name


class CompiledTemplates(jinja2.BytecodeCache):
    """All compiled templates in one file; Jinja's own cache has one for each and takes twice the time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_changed = False
        # By Jinja's key; it checks that the source is still the same.
        self._code: dict[str, bytes] = {}
        with suppress(OSError, ValueError, EOFError, TypeError):
            self._code = dict(marshal.loads(path.read_bytes()))

    def load_bytecode(self, bucket: Bucket) -> None:
        """Called by Jinja."""
        if bucket.key in self._code:
            bucket.bytecode_from_string(self._code[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Called by Jinja for what it compiled anew."""
        self._code[bucket.key] = bucket.bytecode_to_string()
        self._is_changed = True

    def save(self) -> None:
        """Writes the file if anything is new. A cache that cannot be written is no error."""
        if not self._is_changed:
            return
        staged = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            staged.write_bytes(marshal.dumps(self._code))
            staged.replace(self._path)


def compiled_templates(cache_folder: Path | None) -> CompiledTemplates | None:
    """Those below `cache_folder`, unless others could have put code there."""
    if cache_folder is None:
        return None
    folder = cache_folder / "templates"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder):
            return None
    except OSError:
        # A cache is a convenience: a home that cannot be written is no error.
        return None
    return CompiledTemplates(folder / f"{__version__}-{jinja2.__version__}-{sys.implementation.cache_tag}")


def _is_private(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _printable(value: Any) -> Any:
    # `None` and `True` are spelled differently in each language, lists and objects in none: those need a filter.
    # An undefined value raises its own error when it is printed.
    if isinstance(value, (str, int, float, jinja2.Undefined)) and not isinstance(value, bool):
        return value
    raise TypeError(f"a {type(value).__name__} needs a filter such as `| py` or `| yaml`")
