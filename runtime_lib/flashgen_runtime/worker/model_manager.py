"""The models of one worker: lends them by name, to those who wait until they are loaded.

Loading and unloading is the `Mover`'s; everything here only takes and gives back leases, waits, and wakes it. All of it
runs on one event loop.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from flashgen_runtime import metrics
from flashgen_runtime.config import ServerConfig
from flashgen_runtime.errors import ConfigError, RequestError, ServingError
from flashgen_runtime.messages import ModelStatus
from flashgen_runtime.models.base import Library, ServedModel
from flashgen_runtime.worker.capacity import check_fits, check_preload, planned_bytes
from flashgen_runtime.worker.load_reports import cannot_be_loaded
from flashgen_runtime.worker.mover import Mover, Retire
from flashgen_runtime.worker.names import ids_by_name
from flashgen_runtime.worker.residency import Slot
from flashgen_runtime.worker.threads import run_in_daemon_thread

log = logging.getLogger(__name__)

# Requests that may wait for models to be loaded; beyond that they are refused.
MAX_WAITING = 1024


async def _retire_nothing(_: ServedModel) -> None:
    """For a manager without an engine's thread: nobody steps the model."""


class ModelManager:
    """Lends the models of one server.

    Args:
        server: its models, whose ids and aliases are all different, its memory, and how they swap.
        library: where they come from.
    """

    def __init__(self, server: ServerConfig, library: Library) -> None:
        self._server = server
        self._library = library
        self._ids = ids_by_name(server.models)
        pinned = frozenset(server.swap.preload)
        self._slots = {config.id: Slot(config, is_pinned=config.id in pinned) for config in server.models}
        self._mover = Mover(server, library, self._slots)
        metrics.memory_budget_bytes.set(server.memory_bytes)

    async def start(self, *, retire: Retire = _retire_nothing, on_change: Callable[[], None] = lambda: None) -> None:
        """Checks that every model can fit, loads the preloaded ones in order, and serves from then on.

        Args:
            retire: takes a model from whoever steps it; called before it is closed.
            on_change: called whenever `statuses` are others than before.

        Raises:
            ConfigError: a model can never fit; nothing has been loaded.
            ServingError: a preloaded model cannot be loaded.
        """
        await self._survey()
        preload = [self._slots[model_id] for model_id in self._server.swap.preload]
        check_preload(preload, self._server)
        await self._mover.start(preload, retire=retire, on_change=on_change)

    async def close(self) -> None:
        """Loads and unloads no more; what is loaded stays. Requests that wait are left to their tasks."""
        await self._mover.close()

    @property
    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model, loaded or not; what only loading tells is missing until the first time."""
        return tuple(slot.status for slot in self._slots.values())

    @property
    def reserved_bytes(self) -> int:
        """Of all models in memory, or on their way in or out: never more than the server's memory."""
        return self._mover.reserved_bytes

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[ServedModel]:
        """The model with this id or alias, which stays loaded while the context lasts; waits until it is loaded.

        Raises:
            RequestError: no model has that name; it cannot be loaded, or not in time; or too many requests wait.
        """
        slot = self._slot(name)
        model = slot.lend(time.monotonic()) if slot.is_open else await self._wait_for(slot)
        try:
            if slot.config.prefetch:
                self._mover.prefetch(slot.config.prefetch)
            yield model
        finally:
            self._take_back(slot)

    def status(self, name: str) -> ModelStatus:
        """Of one model; raises `RequestError` for an unknown name."""
        return self._slot(name).status

    def num_leases(self, name: str) -> int:
        """Requests that hold a model now."""
        return self._slot(name).leases

    def num_waiting(self, name: str) -> int:
        """Requests that wait for a model."""
        return len(self._slot(name).waiters)

    async def load(self, name: str) -> None:
        """Loads a model as if a request had come for it; raises `RequestError`."""
        async with self.lease(name):
            return

    async def unload(self, name: str) -> None:
        """Unloads a model that nobody uses, pinned or not; raises `RequestError` for one in use."""
        slot = self._slot(name)
        if slot.residency in ("unloaded", "failed"):
            return
        if slot.residency == "loading" or slot.leases or slot.waiters:
            raise in_use(slot)
        await self._mover.unload(slot)

    def _slot(self, name: str) -> Slot:
        model_id = self._ids.get(name)
        if model_id is None:
            known = ", ".join(f"`{known}`" for known in self._ids)
            message = f"the model `{name}` is not served here, only {known}"
            raise RequestError(message, kind="unknown_model", param="model")
        return self._slots[model_id]

    async def _wait_for(self, slot: Slot) -> ServedModel:
        self._check_may_wait(slot)
        waiter = slot.add_waiter(time.monotonic())
        self._mover.wake()
        try:
            async with asyncio.timeout(self._server.swap.load_timeout_seconds):
                return await waiter.granted
        except BaseException as error:
            # It may have been lent just when the caller left.
            if waiter.has_lease:
                self._take_back(slot)
            if isinstance(error, TimeoutError):
                raise self._timed_out(slot) from None
            raise
        finally:
            slot.remove_waiter(waiter)
            self._mover.wake()

    def _take_back(self, slot: Slot) -> None:
        slot.take_back(time.monotonic())
        if slot.leases == 0:
            self._mover.wake()

    def _check_may_wait(self, slot: Slot) -> None:
        """Refuses a request that would wait for nothing, or is one too many."""
        if slot.failure is not None and time.monotonic() < slot.failure.retry_at:
            raise cannot_be_loaded(slot)
        if sum(len(other.waiters) for other in self._slots.values()) >= MAX_WAITING:
            raise RequestError(f"{MAX_WAITING} requests wait for models to be loaded", kind="overloaded")

    def _timed_out(self, slot: Slot) -> RequestError:
        seconds = self._server.swap.load_timeout_seconds
        what = "still being fetched" if self._mover.is_locating(slot) else f"{slot.residency}, not loaded,"
        return RequestError(f"the model `{slot.id}` is {what} after {seconds:g} s", kind="unavailable")

    async def _survey(self) -> None:
        """Measures every model whose checkpoint is on the disk, before one is loaded; raises `ConfigError`."""
        for slot in self._slots.values():
            check_fits(slot.config, planned_bytes(slot.config), self._server)
        for slot in self._slots.values():
            try:
                if await run_in_daemon_thread(partial(self._library.is_on_disk, slot.config), name="locate"):
                    await self._mover.locate(slot)
            except ConfigError:
                raise
            except (ServingError, OSError) as error:
                if slot.is_pinned:
                    raise
                # The others can be served: this one is tried again when it is asked for.
                self._mover.fail(slot, error)


def in_use(slot: Slot) -> RequestError:
    """Why a model is not unloaded."""
    return RequestError(f"the model `{slot.id}` is in use", kind="overloaded")
