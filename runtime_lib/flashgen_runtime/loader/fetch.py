"""Brings a source's files into a folder: several at once, each from where an earlier attempt ended, checked.

A file's bytes are hashed as they come. What does not hash to what was promised is fetched once more, then refused.
"""

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from flashgen_runtime.errors import DiskFullError, DownloadError, ServingError, WeightsError
from flashgen_runtime.loader.manifest import StoredFile
from flashgen_runtime.loader.remote_files import Progress, RemoteFile, Source

READ_BYTES = 8 << 20

# Files fetched beside each other; more only fight for the same line.
FETCH_THREADS = 4

# A source that stops sending is asked again after pauses that double; bytes in between start the count anew.
MAX_ATTEMPTS = 5
PAUSE_SECONDS = 0.5

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

# After a crash of the machine a file may have its length and not its bytes.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StoreError(ServingError):
    """The store cannot do what was asked."""


class UnwritableStoreError(StoreError, WeightsError):
    """The store cannot be written, for another reason than a full disk: no other attempt repairs that."""


def fetch_files(
    source: Source, folder: Path, *, progress: Progress, present: Mapping[str, Path] | None = None
) -> list[StoredFile]:
    """Makes all files of a source complete in `folder`, and gives what they are.

    Args:
        source: where they come from.
        folder: holds what earlier attempts have left.
        progress: called from several threads.
        present: SHA-256 → a file that has it already, which is linked instead of fetched.

    Raises:
        WeightsError: a file is not what the source promised.
        DownloadError: it could not be fetched now; what has arrived stays.
        UnwritableStoreError: the folder cannot be written; a `WeightsError`.
    """
    stop = threading.Event()

    def fetch(file: RemoteFile) -> StoredFile:
        return _File(source, file, folder, progress=progress, stop=stop).fetch((present or {}).get(file.sha256 or ""))

    with ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="pull") as pool:
        try:
            return list(pool.map(fetch, source.files))
        except BaseException:
            # One that failed, or Ctrl-C: the others end at their next chunk.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def sha256_of(path: Path, progress: Progress = lambda _: None) -> str:
    """A file's digest, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def writing_error(name: str, folder: Path, error: OSError) -> ServingError:
    """What to raise when a file of the store could not be written."""
    if error.errno in _NO_ROOM:
        return DiskFullError(name, folder)
    return UnwritableStoreError(error.filename or folder, f"cannot be written: {error.strerror or error}")


class _File:
    """One file on its way."""

    def __init__(
        self, source: Source, file: RemoteFile, folder: Path, *, progress: Progress, stop: threading.Event
    ) -> None:
        self._source = source
        self._file = file
        self._target = folder / file.name
        self._note = self._target.with_name(f".{self._target.name}.version")
        self._progress = progress
        self._stop = stop
        self._name = f"{source.uri}/{file.name}"

    def fetch(self, same: Path | None) -> StoredFile:
        """Makes it complete, from a file that has the same content if there is one."""
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            if same is not None and self._link(same):
                return self._stored(str(self._file.sha256))
            problem = self._attempt()
            if problem is not None:
                self._progress(-self._file.size)
                problem = self._attempt()
        except OSError as error:
            raise writing_error(self._name, self._target.parent, error) from error
        if problem is not None:
            raise WeightsError(self._name, f"arrived damaged: {problem}")
        return self._stored(self._sha256)

    def _stored(self, sha256: str) -> StoredFile:
        return StoredFile(name=self._file.name, size=self._file.size, sha256=sha256)

    def _link(self, same: Path) -> bool:
        """Whether another model's file could be taken: it is read, so that damage does not spread."""
        if sha256_of(same) != self._file.sha256:
            return False
        self._target.unlink(missing_ok=True)
        try:
            self._target.hardlink_to(same)
        except OSError:
            return False
        self._progress(self._file.size)
        return True

    def _attempt(self) -> str | None:
        """Fetches what is missing; gives what is wrong with the result, which is thrown away then."""
        digests = _Digests(self._file)
        with self._open() as output:
            present = output.seek(0)
            while chunk := output.read(READ_BYTES):
                digests.update(chunk)
                present += len(chunk)
            self._progress(present)
            self._append(output, digests, present)
        problem = digests.problem()
        if problem is not None:
            self._target.unlink()
        self._sha256 = digests.sha256
        return problem

    def _open(self) -> BinaryIO:
        """The file as an earlier attempt left it, if that was for the same version, and empty otherwise."""
        boot_id = _BOOT_ID.read_text() if _BOOT_ID.exists() else ""
        version = f"{self._file.version}\n{boot_id}"
        with contextlib.suppress(FileNotFoundError):
            is_same = bool(self._file.version) and self._note.read_text() == version
            size = self._target.stat().st_size if is_same else None
            if size == self._file.size:
                # Perhaps read-only already, and nothing will be written.
                return self._target.open("rb", buffering=0)
            if size is not None and size < self._file.size:
                return self._target.open("r+b", buffering=0)
        self._target.unlink(missing_ok=True)
        self._note.write_text(version)
        return self._target.open("w+b", buffering=0)

    def _append(self, output: BinaryIO, digests: "_Digests", position: int) -> None:
        failures = 0
        while position < self._file.size:
            before = position
            try:
                for chunk in self._source.read(self._file, position):
                    self._write(output, chunk, position)
                    digests.update(chunk)
                    position += len(chunk)
                problem = DownloadError(self._name, f"ends at byte {position}, expected {self._file.size}")
            except DownloadError as error:
                problem = error
            if position == self._file.size:
                return
            failures = 1 if position > before else failures + 1
            if failures == MAX_ATTEMPTS:
                raise problem
            self._pause(failures)

    def _write(self, output: BinaryIO, chunk: bytes, position: int) -> None:
        if self._stop.is_set():
            raise DownloadError(self._name, "was given up because another file failed")
        if position + len(chunk) > self._file.size:
            self._target.unlink()
            raise WeightsError(self._name, f"is longer than the {self._file.size} bytes that its source said")
        view = memoryview(chunk)
        while view:
            view = view[output.write(view) :]
        self._progress(len(chunk))

    def _pause(self, failures: int) -> None:
        end = time.monotonic() + PAUSE_SECONDS * 2 ** (failures - 1)
        if self._stop.wait(end - time.monotonic()):
            raise DownloadError(self._name, "was given up because another file failed")


class _Digests:
    """What a file hashes to, in the ways that its source knows."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._git = None if file.git_sha1 is None else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def update(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        if self._git is not None:
            self._git.update(chunk)

    def problem(self) -> str | None:
        """How it differs from what the source promised."""
        if self._file.sha256 not in (None, self.sha256):
            return f"its SHA-256 is {self.sha256}, the source says {self._file.sha256}"
        if self._git is not None and self._git.hexdigest() != self._file.git_sha1:
            return f"git would call it {self._git.hexdigest()}, the source says {self._file.git_sha1}"
        return None


def sync(path: Path) -> None:
    """Waits until a file or folder is safe on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
