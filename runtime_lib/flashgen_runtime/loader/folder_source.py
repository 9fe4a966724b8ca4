"""Checkpoints in a folder of this machine."""

from collections.abc import Iterator
from pathlib import Path

from flashgen_runtime.errors import DownloadError, WeightsError
from flashgen_runtime.loader.remote_files import RemoteFile, digest_of, is_wanted

CHUNK_BYTES = 4 << 20

# What the hub's cache calls its files by: the digest of the content, or git's name of it.
_SHA256_LENGTH = 64
_SHA1_LENGTH = 40


class FolderSource:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder.absolute())
        self._folder = folder
        if not folder.is_dir():
            raise WeightsError(folder, "no such folder")
        self.files = self.list_files()

    @property
    def revision(self) -> str:
        return digest_of(self.files)

    def list_files(self) -> list[RemoteFile]:
        paths = sorted(path for path in self._folder.rglob("*") if path.is_file())
        return [
            self._listed(name, path) for path in paths if is_wanted(name := path.relative_to(self._folder).as_posix())
        ]

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        path = self._folder / file.name
        try:
            with path.open("rb", buffering=0) as content:
                content.seek(start)
                while chunk := content.read(CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise DownloadError(str(path), f"cannot be read: {error.strerror or error}") from error

    def _listed(self, name: str, path: Path) -> RemoteFile:
        found = path.stat()
        return RemoteFile(name, found.st_size, str(found.st_mtime_ns))


class HubCacheSource(FolderSource):
    """A repository as the hub's own cache on this machine has it: one commit, its files named by their digests."""

    def __init__(self, repository: str, snapshot: Path) -> None:
        super().__init__(snapshot)
        self.uri = repository
        self._commit = snapshot.name

    @property
    def revision(self) -> str:
        return self._commit

    def _listed(self, name: str, path: Path) -> RemoteFile:
        digest = path.resolve().name if path.is_symlink() else ""
        return RemoteFile(
            name,
            path.stat().st_size,
            digest,
            sha256=digest if len(digest) == _SHA256_LENGTH else None,
            git_sha1=digest if len(digest) == _SHA1_LENGTH else None,
        )
