"""Reads the files of models ahead that will be loaded soon: one after the other, and never beside a load."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from flashgen_runtime.errors import ServingError
from flashgen_runtime.logs import fields
from flashgen_runtime.worker.host_cache import Files, HostCache, ReadAhead
from flashgen_runtime.worker.threads import run_in_daemon_thread

log = logging.getLogger(__name__)


class Prefetcher:
    """What is to be read, in order. Lives on the event loop; reading has a thread of its own."""

    def __init__(self, cache: HostCache) -> None:
        self._cache = cache
        self._jobs: dict[str, _Job] = {}
        self._running: asyncio.Task[None] | None = None
        self._num_loads = 0
        self._is_closed = False

    def want(self, model_id: str, find_files: Callable[[], Files]) -> None:
        """Brings a model's files into host memory when nothing else reads; asking twice is asking once."""
        if model_id not in self._jobs and model_id not in self._cache:
            self._jobs[model_id] = _Job(model_id, find_files, self._cache)
            self._go_on()

    def forget(self, model_id: str) -> None:
        """Nobody needs the files any more; what has been read stays until its place is needed."""
        self._jobs.pop(model_id, None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While a model is loaded: two that read from one disk are both slow."""
        self._num_loads += 1
        try:
            yield
        finally:
            self._num_loads -= 1
            self._go_on()

    def close(self) -> None:
        """Ends it after the chunk that is being read."""
        self._is_closed = True
        self._jobs.clear()

    def _may_read(self, model_id: str) -> bool:
        return self._num_loads == 0 and model_id in self._jobs

    def _go_on(self) -> None:
        is_running = self._running is not None and not self._running.done()
        if self._jobs and not is_running and self._num_loads == 0 and not self._is_closed:
            self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._jobs and self._num_loads == 0:
            model_id, job = next(iter(self._jobs.items()))
            read = partial(job.read, partial(self._may_read, model_id))
            if await run_in_daemon_thread(read, name="read-ahead") and self._jobs.get(model_id) is job:
                del self._jobs[model_id]


class _Job:
    """One model's files on their way."""

    def __init__(self, model_id: str, find_files: Callable[[], Files], cache: HostCache) -> None:
        self._model_id = model_id
        self._find_files = find_files
        self._cache = cache
        self._reading: ReadAhead | None = None

    def read(self, may_go_on: Callable[[], bool]) -> bool:
        """Whether there is nothing more to do. Blocks."""
        if self._reading is None:
            try:
                files = self._find_files()
            except (ServingError, OSError) as error:
                # Loading it will say so to somebody.
                log.info("cannot be read ahead: %s", error, extra=fields(model=self._model_id))
                return True
            if not self._cache.admit(self._model_id, files):
                return True
            self._reading = ReadAhead(files)
        return self._reading.read(may_go_on)
