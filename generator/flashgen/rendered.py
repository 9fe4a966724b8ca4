"""The project as texts in memory, before anything is written."""

from typing import NamedTuple

from flashgen.build_plan import Owner


class RenderedFile(NamedTuple):
    """One output; `content` is UTF-8 with LF for texts, any bytes for the vendored wheel."""

    file_id: str
    path: str
    content: bytes
    owner: Owner
    mode: int
    is_binary: bool = False


class RenderedProject(NamedTuple):
    """All outputs, sorted by path."""

    files: tuple[RenderedFile, ...]
    generator_version: str
    spec_sha256: str
    # The spec's path relative to the project.
    spec_path: str
