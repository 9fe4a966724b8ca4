"""The project as texts in memory, before anything is written."""

from dataclasses import dataclass

from flashgen.build_plan import Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedFile:
    """One output; `content` is UTF-8 with LF for texts, any bytes for the vendored wheel."""

    file_id: str
    path: str
    content: bytes
    owner: Owner
    mode: int
    is_binary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedProject:
    """All outputs, sorted by path."""

    files: tuple[RenderedFile, ...]
    generator_version: str
    spec_sha256: str
    # The spec's path relative to the project.
    spec_path: str
