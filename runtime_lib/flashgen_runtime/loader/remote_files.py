"""What every source of checkpoints has in common: a list of files, and bytes of each from any place on."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from typing import NamedTuple, Protocol

from flashgen_runtime.loader.checkpoint import HUB_PATTERNS
from flashgen_runtime.loader.manifest import MANIFEST_NAME

# Bytes that have arrived since the last call; negative when some of them were thrown away.
Progress = Callable[[int], None]

# The same weights or files once more, for other programs, or of an earlier state of the training.
_DUPLICATES = ("consolidated*.safetensors", "original/*", "onnx/*", "openvino/*", "checkpoint-*/*", "*/checkpoint-*/*")

# As long as the hub's commits, which stand in the same place.
_REVISION_LENGTH = 40


class RemoteFile(NamedTuple):
    """A file of a checkpoint before it is fetched."""

    # Relative to the checkpoint's folder, with "/".
    name: str
    size: int

    # Changes when the file changes: an entity tag, a commit, a time; empty where the source has none.
    version: str

    # Hexadecimal digests, where the source knows them: of the content, and as git names its objects.
    sha256: str | None = None
    git_sha1: str | None = None


class Source(Protocol):
    """One checkpoint somewhere. Making one may already raise what `list_files` raises."""

    @property
    def uri(self) -> str:
        """Its address, the same from every working directory."""

    @property
    def revision(self) -> str:
        """What exactly is fetched: a commit of the hub, else `digest_of` its files."""

    @property
    def files(self) -> list[RemoteFile]:
        """What belongs to the checkpoint, as it was when the source was made."""

    def list_files(self) -> list[RemoteFile]:
        """The same as it is now; raises `WeightsError` or `DownloadError`."""

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """The file's bytes from `start` on; may be called from several threads.

        Raises `DownloadError` when they stop coming: another call goes on from there.
        """


def is_wanted(name: str) -> bool:
    """Whether a file belongs to a checkpoint as we store it: no pickled weights, no code, nothing hidden or outside."""
    parts = name.split("/")
    if any(part in ("", "..") or part.startswith(".") for part in parts):
        return False
    return name != MANIFEST_NAME and _matches(name, HUB_PATTERNS) and not _matches(name, _DUPLICATES)


def total_bytes(files: Iterable[RemoteFile]) -> int:
    """The sum of the files' sizes."""
    return sum(file.size for file in files)


def digest_of(files: Iterable[RemoteFile]) -> str:
    """A revision for sources that have none: another one whenever a file changes."""
    lines = "".join(f"{file.name}\0{file.size}\0{file.version}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:_REVISION_LENGTH]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
