"""The store: checkpoints on this machine's disk, complete or not there, never changed once they are.

    <root>/models/<name>/           one checkpoint as pulled, files read-only, beside `flashgen-manifest.json`
    <root>/partial/<name>/          a pull that has not finished; the next one goes on there
    <root>/locks/<name>             held while a model is pulled or removed

A model exists when its folder stands below `models`: that folder gets its name in one step, after every file is
complete, checked and on the disk. So whatever kills a pull, nothing ever looks complete that is not.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from flashgen_runtime.errors import ServingError, WeightsError
from flashgen_runtime.loader.checkpoint import read_headers
from flashgen_runtime.loader.safetensors_header import read_header
from flashgen_runtime.loader.sources import Progress, RemoteFile, Source, canonical_uri, source_of, total_bytes

MANIFEST_NAME = "flashgen-manifest.json"
READ_BYTES = 8 << 20

# Files fetched beside each other; more only fight for the same line.
FETCH_THREADS = 4


class StoreError(ServingError):
    """The store cannot do what was asked: no such model, no room, a name that means several."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a stored checkpoint."""

    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a stored checkpoint is and where it came from."""

    uri: str

    # The hub's commit; empty where the source has none.
    revision: str
    pulled: datetime
    files: list[StoredFile]

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that is there."""

    name: str
    path: Path
    manifest: Manifest


class Store:
    """Checkpoints below one folder; several processes may use it at once.

    Args:
        root: the folder; made when the first model comes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def models(self) -> list[StoredModel]:
        """All stored models by name."""
        folders = sorted((self.root / "models").glob(f"*/{MANIFEST_NAME}"))
        return [self._stored(manifest.parent.name) for manifest in folders]

    def find(self, uri: str, revision: str | None = None) -> StoredModel | None:
        """The stored model that was pulled from `uri`, or has this name; of several revisions the newest pull."""
        wanted = canonical_uri(uri)
        found = [
            model
            for model in self.models()
            if model.manifest.uri == wanted or model.name == uri
            if revision in (None, model.manifest.revision)
        ]
        return max(found, key=lambda model: model.manifest.pulled, default=None)

    def get(self, uri: str, revision: str | None = None) -> StoredModel:
        """As `find`; raises `StoreError` if there is none."""
        model = self.find(uri, revision)
        if model is None:
            known = ", ".join(sorted({model.manifest.uri for model in self.models()})) or "none"
            raise StoreError(f"the store has no model `{uri}`; it has: {known}")
        return model

    def pull(
        self,
        uri: str,
        revision: str | None = None,
        *,
        on_start: Callable[[int], None] = lambda _: None,
        progress: Progress = lambda _: None,
        source: Source | None = None,
    ) -> StoredModel:
        """Fetches a checkpoint unless it is there; of several pulls of one model one works and the others wait.

        Args:
            uri: a hub id, a folder, s3://, gs:// or https://.
            revision: of the hub; `None` is its main branch as it is now.
            on_start: called with the number of bytes before they are fetched.
            progress: called with the number of bytes that have arrived; from several threads.
            source: stands in for the one that `uri` means.

        Raises:
            WeightsError: no such checkpoint, or its files are not sound.
            DownloadError: it could not be fetched now; another attempt goes on where this one ended.
            StoreError: the disk has no room.
        """
        source = source or source_of(uri, revision)
        uri = source.uri
        name = stored_name(uri, source.revision)
        with self._locked(name):
            target = self.root / "models" / name
            if (target / MANIFEST_NAME).exists():
                return self._stored(name)
            files = source.list_files()
            partial = self.root / "partial" / name
            partial.mkdir(parents=True, exist_ok=True)
            self._check_room(uri, partial, total_bytes(files))
            on_start(total_bytes(files))
            manifest = Manifest(
                uri=uri,
                revision=source.revision,
                pulled=datetime.now(UTC),
                files=self._fetch_all(uri, source, files, partial, progress),
            )
            _check_weights(partial)
            _finish(partial, manifest)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(target)
            _sync(target.parent)
        return self._stored(name)

    def verify(self, model: StoredModel, *, progress: Progress = lambda _: None) -> None:
        """Reads every file and compares it with the manifest; raises `WeightsError` for the first that differs."""
        for file in model.manifest.files:
            path = model.path / file.name
            if not path.is_file():
                raise WeightsError(path, "is missing from the store; pull the model again")
            if path.stat().st_size != file.size or sha256_of(path, progress) != file.sha256:
                raise WeightsError(path, "is not what was pulled; remove the model and pull it again")

    def remove(self, model: StoredModel) -> None:
        """Takes a model out of the store; processes that have mapped it keep what they have mapped."""
        with self._locked(model.name):
            # In one step out of sight, then file by file.
            grave = self.root / "partial" / f".removed-{model.name}-{os.getpid()}"
            grave.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                model.path.replace(grave)
            shutil.rmtree(grave, ignore_errors=True)

    def clean_up(self) -> int:
        """Removes what unfinished pulls have left and nobody works on; gives the number of bytes."""
        freed = 0
        for folder in sorted((self.root / "partial").glob("*")):
            with self._try_locked(folder.name) as is_ours:
                if is_ours:
                    freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                    shutil.rmtree(folder, ignore_errors=True)
        return freed

    def _stored(self, name: str) -> StoredModel:
        path = self.root / "models" / name
        try:
            manifest = msgspec.json.decode((path / MANIFEST_NAME).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError) as error:
            raise WeightsError(path / MANIFEST_NAME, f"cannot be read: {error}") from error
        return StoredModel(name=name, path=path, manifest=manifest)

    def _fetch_all(
        self, uri: str, source: Source, files: list[RemoteFile], folder: Path, progress: Progress
    ) -> list[StoredFile]:
        def fetch(file: RemoteFile) -> StoredFile:
            try:
                source.fetch(file, folder, progress)
                return _checked(uri, file, folder)
            except OSError as error:
                place = error.filename or folder / file.name
                raise StoreError(f"{place} cannot be copied: {error.strerror or error}") from error

        with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="pull") as pool:
            try:
                return list(pool.map(fetch, files))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _check_room(self, uri: str, folder: Path, num_bytes: int) -> None:
        present = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(folder).free
        if num_bytes - present > free:
            message = f"`{uri}` takes {num_bytes - present} bytes more, the disk of {self.root} has {free} left"
            raise StoreError(message)

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Waits until nobody else works on the model; the lock ends with the process that holds it."""
        with self._lock_file(name) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _try_locked(self, name: str) -> Iterator[bool]:
        with self._lock_file(name) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    @contextlib.contextmanager
    def _lock_file(self, name: str) -> Iterator[int]:
        path = self.root / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def default_root() -> Path:
    """`FLASHGEN_STORE`, else a folder in the user's cache."""
    if root := os.environ.get("FLASHGEN_STORE"):
        return Path(root)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "flashgen" / "store"


def stored_name(uri: str, revision: str) -> str:
    """A folder's name for a model: readable, and different for every source and revision."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", uri.split("://")[-1]).strip("-.")[-60:]
    digest = hashlib.sha256(f"{uri}\0{revision}".encode()).hexdigest()[:12]
    return f"{readable or 'model'}-{digest}"


def sha256_of(path: Path, progress: Progress = lambda _: None) -> str:
    """A file's digest, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def _checked(uri: str, file: RemoteFile, folder: Path) -> StoredFile:
    """The file as it was fetched; one that is not what the source promised is thrown away."""
    path = folder / file.name
    size, digest = path.stat().st_size, sha256_of(path)
    if size != file.size:
        path.unlink()
        raise WeightsError(f"{uri}/{file.name}", f"arrived damaged: {size} bytes instead of {file.size}; pull it again")
    if file.sha256 not in (None, digest):
        path.unlink()
        problem = f"arrived damaged: its SHA-256 is {digest}, the source says {file.sha256}; pull it again"
        raise WeightsError(f"{uri}/{file.name}", problem)
    return StoredFile(name=file.name, size=size, sha256=digest)


def _check_weights(folder: Path) -> None:
    """Raises unless there are weights and all of their headers are sound."""
    read_headers(folder)
    for path in folder.glob("*.safetensors"):
        read_header(path)


def _finish(folder: Path, manifest: Manifest) -> None:
    """Throws away what is not the checkpoint's, writes the manifest, makes files read-only and safe on the disk."""
    names = {file.name for file in manifest.files}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder).as_posix() not in names:
            path.unlink()
        elif path.is_dir():
            with contextlib.suppress(OSError):
                path.rmdir()
    (folder / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
