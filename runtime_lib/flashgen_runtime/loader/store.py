"""The store: checkpoints on this machine's disk, complete or not there, never changed once they are.

    <root>/models/<name>/           one checkpoint as pulled, files read-only, beside `flashgen-manifest.json`
    <root>/prepared/<name>/         the same weights as kernels want them (see `loader.prepared`)
    <root>/partial/<name>/          a pull that has not finished; the next one goes on there
    <root>/locks/<name>             held while a model is pulled or removed; `prepared-<name>` while it is prepared

A model exists when its folder stands below `models`: that folder gets its name in one step, after every file is
complete, checked and on the disk. So whatever kills a pull, nothing ever looks complete that is not.
"""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from flashgen_runtime.errors import DiskFullError, DownloadError, WeightsError
from flashgen_runtime.loader.fetch import (
    StoreError,
    UnwritableStoreError,
    fetch_files,
    sha256_of,
    sync,
    writing_error,
)
from flashgen_runtime.loader.hub_source import cached_repository, is_offline
from flashgen_runtime.loader.locks import locked, try_locked
from flashgen_runtime.loader.manifest import (
    MANIFEST_NAME,
    Manifest,
    PreparedElsewhere,
    StoredModel,
    read_manifest,
)
from flashgen_runtime.loader.remote_files import Progress, RemoteFile, Source, total_bytes
from flashgen_runtime.loader.sources import canonical_uri, is_hub_id, source_of
from flashgen_runtime.loader.store_folders import (
    check_weights,
    checkpoint_of,
    finish,
    remove_tree,
    tree_bytes,
    weight_files,
)
from flashgen_runtime.logs import fields

__all__ = [
    "PreparedElsewhere",
    "Store",
    "StoreError",
    "StoredModel",
    "UnknownModelError",
    "UnwritableStoreError",
    "default_root",
    "stored_name",
]

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")

# Folders that wait for their last file to be removed.
_GRAVE = ".removed-"


class UnknownModelError(StoreError):
    """The store has no such model."""

    def __init__(self, wanted: str, known: list[str]) -> None:
        super().__init__(f"the store has no model `{wanted}`; it has: {', '.join(known) or 'none'}")
        self.wanted = wanted
        self.known = known


class Store:
    """Checkpoints below one folder; several processes may use it at once.

    Args:
        root: the folder; made when the first model comes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def models(self) -> list[StoredModel]:
        """All stored models by name; one whose manifest is damaged is left out, and a warning names it."""
        folders = sorted(manifest.parent for manifest in (self.root / "models").glob(f"*/{MANIFEST_NAME}"))
        models = []
        for folder in folders:
            try:
                models.append(self._stored(folder.name))
            except WeightsError as error:
                log.warning("%s", error)
        return models

    def find_all(self, uri: str, revision: str | None = None) -> list[StoredModel]:
        """The stored models that were pulled from `uri`, or have this name; the newest pull first.

        Args:
            uri: what they were pulled from, or a name.
            revision: a commit, or the branch or tag that was asked for.
        """
        wanted = canonical_uri(uri)
        found = [
            model
            for model in self.models()
            if model.manifest.uri == wanted or model.name == uri
            if revision in (None, model.manifest.revision, model.manifest.reference)
        ]
        return sorted(found, key=lambda model: model.manifest.pulled, reverse=True)

    def find(self, uri: str, revision: str | None = None) -> StoredModel | None:
        """The newest of `find_all`."""
        return next(iter(self.find_all(uri, revision)), None)

    def get(self, uri: str, revision: str | None = None) -> StoredModel:
        """As `find`; raises `UnknownModelError` if there is none."""
        model = self.find(uri, revision)
        if model is None:
            wanted = uri if revision is None else f"{uri}@{revision}"
            raise UnknownModelError(wanted, sorted({model.manifest.uri for model in self.models()}))
        return model

    def pull(
        self,
        uri: str,
        revision: str | None = None,
        *,
        on_start: Callable[[int], None] = lambda _: None,
        on_wait: Callable[[], None] = lambda: None,
        progress: Progress = lambda _: None,
        source: Source | None = None,
    ) -> StoredModel:
        """Fetches a checkpoint unless it is there; of several pulls of one model one works and the others wait.

        When its source does not answer, the newest pull of it serves, else what the hub's own cache has.

        Args:
            uri: a hub id, a folder, s3://, gs:// or https://, or the name of a model that is there.
            revision: of the hub; `None` is its main branch as it is now.
            on_start: called with the number of bytes before they are fetched.
            on_wait: called when another process is pulling the model, before waiting for it.
            progress: called with the number of bytes that have arrived; from several threads.
            source: stands in for the one that `uri` means.

        Raises:
            WeightsError: no such checkpoint, or its files are not sound.
            DownloadError: it could not be fetched now; another attempt goes on where this one ended.
            DiskFullError: the disk has no room.
            UnwritableStoreError: the store cannot be written; a `WeightsError`.
        """
        if source is None:
            found = self._source_or_model(uri, revision)
            if isinstance(found, StoredModel):
                return found
            source = found
        name = stored_name(source.uri, source.revision)
        # Without the lock, which cannot be taken in a store that may only be read.
        if not self._has(name):
            try:
                with locked(self._lock(name), on_wait):
                    if not self._has(name):
                        self._fetch(source, name, reference=_reference(revision), on_start=on_start, progress=progress)
            except OSError as error:
                raise writing_error(source.uri, self.root, error) from error
        return self._stored(name)

    def damaged_files(self, model: StoredModel, *, progress: Progress = lambda _: None) -> Iterator[WeightsError]:
        """Reads every file and compares it with the manifest; gives an error for each that differs."""
        for file in model.manifest.files:
            path = model.path / file.name
            if not path.is_file():
                yield WeightsError(path, "is missing from the store; remove the model and pull it again")
            elif path.stat().st_size != file.size or sha256_of(path, progress) != file.sha256:
                yield WeightsError(path, "is not what was pulled; remove the model and pull it again")

    def verify(self, model: StoredModel, *, progress: Progress = lambda _: None) -> None:
        """As `damaged_files`; raises the first one."""
        for error in self.damaged_files(model, progress=progress):
            raise error

    def prepared_files(self, model: StoredModel) -> list[Path]:
        """What was prepared from a model."""
        return weight_files(self.root / "prepared" / model.name)

    def prepared_elsewhere(self) -> list[PreparedElsewhere]:
        """What was prepared from checkpoints that lie elsewhere, or were removed by hand."""
        return [
            PreparedElsewhere(name=folder.name, checkpoint=checkpoint_of(files[0]), files=files)
            for folder in sorted((self.root / "prepared").glob("*"))
            if not self._has(folder.name) and (files := weight_files(folder))
        ]

    def remove(self, model: StoredModel) -> int:
        """Takes a model and what was prepared from it out of the store; gives the number of bytes.

        Processes that have mapped its files keep what they have mapped.
        """
        with locked(self._lock(model.name)):
            return self._bury(model.path) + self.remove_prepared(model)

    def remove_prepared(self, model: StoredModel | PreparedElsewhere) -> int:
        """Removes what was prepared from a checkpoint, when nobody prepares it any more; gives the number of bytes."""
        with locked(self._lock(f"prepared-{model.name}")):
            return self._bury(self.root / "prepared" / model.name)

    def clean_up(self) -> int:
        """Removes what unfinished pulls have left and nobody works on; gives the number of bytes."""
        freed = 0
        for folder in sorted((self.root / "partial").glob("*")):
            if folder.name.startswith(_GRAVE):
                freed += remove_tree(folder)
                continue
            with try_locked(self._lock(folder.name)) as is_ours:
                freed += remove_tree(folder) if is_ours else 0
        return freed

    def _source_or_model(self, uri: str, revision: str | None) -> Source | StoredModel:
        if "/" not in uri and self._has(uri):
            return self._stored(uri)
        if revision is not None and _COMMIT.fullmatch(revision) and (pinned := self.find(uri, revision)):
            return pinned
        try:
            return source_of(uri, revision)
        except DownloadError as error:
            return self._without_source(uri, revision, error)

    def _without_source(self, uri: str, revision: str | None, error: DownloadError) -> Source | StoredModel:
        """What there is when nobody answers; raises if there is nothing."""
        if stored := self.find(uri, revision):
            log.warning("%s; taking revision %s, which was pulled before", error, stored.manifest.revision)
            return stored
        if not is_hub_id(uri):
            raise error
        if cached := cached_repository(uri, revision):
            log.warning("%s; taking revision %s from the hub's cache", error, cached.revision)
            return cached
        if is_offline():
            # Without a network on purpose, the next attempt finds no more than this one.
            raise WeightsError(error.name, error.problem) from error
        raise error

    def _fetch(
        self, source: Source, name: str, *, reference: str, on_start: Callable[[int], None], progress: Progress
    ) -> None:
        """Makes a model of a source; its lock is held."""
        partial = self.root / "partial" / name
        partial.mkdir(parents=True, exist_ok=True)
        present = self._present()
        self._check_room(source, partial, present)
        on_start(total_bytes(source.files))
        about = fields(uri=source.uri, revision=source.revision, bytes=total_bytes(source.files))
        log.info("pulling a model into the store", extra=about)
        stored = fetch_files(source, partial, progress=progress, present=present)
        if source.list_files() != source.files:
            raise DownloadError(source.uri, "changed while it was fetched; pull it again")
        check_weights(partial)
        manifest = Manifest(
            uri=source.uri,
            revision=source.revision,
            pulled=datetime.now(UTC),
            files=stored,
            reference=reference,
        )
        finish(partial, manifest)
        target = self.root / "models" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)
        sync(target.parent)
        log.info("pulled a model into the store", extra=about)

    def _present(self) -> dict[str, Path]:
        """Every file of the store by its digest: files never change, so models may share them."""
        return {
            file.sha256: path
            for model in self.models()
            for file in model.manifest.files
            if (path := model.path / file.name).is_file()
        }

    def _has(self, name: str) -> bool:
        return (self.root / "models" / name / MANIFEST_NAME).is_file()

    def _stored(self, name: str) -> StoredModel:
        path = self.root / "models" / name
        return StoredModel(name=name, path=path, manifest=read_manifest(path))

    def _check_room(self, source: Source, folder: Path, present: dict[str, Path]) -> None:
        files: list[RemoteFile] = [file for file in source.files if file.sha256 not in present]
        needed = total_bytes(files) - tree_bytes(folder)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DiskFullError(source.uri, self.root, needed=needed, free=free)

    def _bury(self, folder: Path) -> int:
        """Removes a folder: in one step out of sight, then file by file."""
        grave = self.root / "partial" / f"{_GRAVE}{folder.parent.name}-{folder.name}-{os.getpid()}"
        grave.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.replace(grave)
        except FileNotFoundError:
            return 0
        return remove_tree(grave)

    def _lock(self, name: str) -> Path:
        """The file that is held while somebody works on a model."""
        return self.root / "locks" / name


def default_root() -> Path:
    """`FLASHGEN_STORE`, else a folder in the user's cache."""
    if root := os.environ.get("FLASHGEN_STORE"):
        return Path(root)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "flashgen" / "store"


def stored_name(uri: str, revision: str) -> str:
    """A folder's name for a model: readable, and different for every source and revision."""
    # Stripped after it was cut: what begins with a dash is an option on a command line.
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", uri.split("://")[-1])[-60:].strip("-.")
    digest = hashlib.sha256(f"{uri}\0{revision}".encode()).hexdigest()[:12]
    return f"{readable or 'model'}-{digest}"


def _reference(revision: str | None) -> str:
    return "" if revision is None or _COMMIT.fullmatch(revision) else revision
