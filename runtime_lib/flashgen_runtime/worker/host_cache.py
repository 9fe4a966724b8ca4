"""Files of weights in the host's memory, which is the system's page cache: which stay there, and how they get there.

Models that are loaded have their files to themselves; those of unloaded ones stay, the least recently used leaving
first, while all of them together take no more than was configured.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from flashgen_runtime import metrics

log = logging.getLogger(__name__)

# Read in one go: after so much a reader may be told to stop, and so much it takes of the worker's memory. The system
# reads further ahead by itself.
CHUNK_BYTES = 1 << 20

Files = tuple[Path, ...]


class HostCache:
    """Which files of unloaded models lie in the host's memory. Every call may block, and come from any thread.

    Args:
        limit_bytes: of all unloaded models together; `None` leaves it to the system.
        keeps_unloaded: whether weights stay when their model is unloaded.
    """

    def __init__(self, limit_bytes: int | None, *, keeps_unloaded: bool) -> None:
        self._limit_bytes = limit_bytes
        self._keeps_unloaded = keeps_unloaded
        self._lock = threading.Lock()

        # By the model's id; the cached ones in the order of their last use.
        self._cached: OrderedDict[str, Files] = OrderedDict()
        self._in_use: dict[str, Files] = {}

    def __contains__(self, model_id: str) -> bool:
        return model_id in self._cached

    @property
    def num_bytes(self) -> int:
        """Of the files that belong to unloaded models."""
        with self._lock:
            return self._num_bytes()

    def take(self, model_id: str, files: Files) -> None:
        """The model is being loaded: its files are its own now."""
        with self._lock:
            is_hit = self._cached.pop(model_id, None) is not None
            self._in_use[model_id] = files
            self._show()
        counter = metrics.host_cache_hits_total if is_hit else metrics.host_cache_misses_total
        counter.labels(model_id).inc()

    def replace(self, model_id: str, files: Files) -> None:
        """A loaded model uses these files from now on; those that nobody uses any more leave the memory."""
        with self._lock:
            before, self._in_use[model_id] = self._in_use[model_id], files
            if self._limit_bytes is not None:
                self._drop_files(before)

    def give_back(self, model_id: str) -> None:
        """The model is unloaded, and maps nothing any more: its files stay, as far as they may."""
        with self._lock:
            files = self._in_use.pop(model_id, ())
            self._cached[model_id] = files
            if not self._keeps_unloaded:
                self._drop(model_id)
            self._shrink()
            self._show()

    def admit(self, model_id: str, files: Files) -> bool:
        """Makes room for the files of an unloaded model, which are about to be read; `False` if they never fit."""
        with self._lock:
            if model_id in self._in_use:
                return False
            if self._limit_bytes is not None and _bytes_of(files) > self._limit_bytes:
                return False
            self._cached[model_id] = files
            self._cached.move_to_end(model_id)
            self._shrink()
            self._show()
            return True

    def _num_bytes(self) -> int:
        return sum(map(_bytes_of, self._cached.values()))

    def _shrink(self) -> None:
        while self._limit_bytes is not None and self._num_bytes() > self._limit_bytes:
            self._drop(next(iter(self._cached)))

    def _drop(self, model_id: str) -> None:
        self._drop_files(self._cached.pop(model_id))

    def _drop_files(self, files: Files) -> None:
        others = {file for kept in (*self._cached.values(), *self._in_use.values()) for file in kept}
        for file in files:
            if file not in others:
                drop_from_memory(file)

    def _show(self) -> None:
        metrics.host_cache_bytes.set(self._num_bytes())


class ReadAhead:
    """Brings files into the page cache chunk by chunk; one that was stopped goes on where it was."""

    def __init__(self, files: Files) -> None:
        self._files = list(files)
        self._offset = 0

    def read(self, may_go_on: Callable[[], bool]) -> bool:
        """Reads until all is there, `True`, or `may_go_on` is not. A file that cannot be read is left to the loading.

        Blocks; without the interpreter's lock.
        """
        buffer = bytearray(CHUNK_BYTES)
        while self._files:
            try:
                if not self._read_file(self._files[0], buffer, may_go_on):
                    return False
            except OSError as error:
                log.info("cannot be read ahead: %s", error)
            del self._files[0]
            self._offset = 0
        return True

    def _read_file(self, path: Path, buffer: bytearray, may_go_on: Callable[[], bool]) -> bool:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while may_go_on():
                num_bytes = os.preadv(descriptor, [buffer], self._offset)
                if num_bytes == 0:
                    return True
                self._offset += num_bytes
            return False
        finally:
            os.close(descriptor)


def drop_from_memory(path: Path) -> None:
    """Takes a file out of the page cache, but for pages that a process has mapped. One that is gone is ignored."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        log.info("cannot be dropped from memory: %s", error)
        return
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _bytes_of(files: Iterable[Path]) -> int:
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except OSError:
            continue  # gone: it takes nothing
    return total
