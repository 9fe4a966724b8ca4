"""The task that moves models in and out of memory, one at a time, within the budget.

It alone loads and unloads, and it alone decides; whoever gives back a lease, waits, or gives up waiting wakes it.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from flashgen_runtime import metrics
from flashgen_runtime.config import ModelConfig, ServerConfig
from flashgen_runtime.errors import ConfigError, RequestError, ServingError
from flashgen_runtime.logs import fields
from flashgen_runtime.models.base import Library, ModelMemory, ServedModel
from flashgen_runtime.worker import eviction
from flashgen_runtime.worker.capacity import check_fits, check_preload
from flashgen_runtime.worker.eviction import Room
from flashgen_runtime.worker.freeing import close_model, free_after_failure
from flashgen_runtime.worker.host_cache import HostCache
from flashgen_runtime.worker.prefetch import Prefetcher
from flashgen_runtime.worker.residency import Slot
from flashgen_runtime.worker.threads import run_in_daemon_thread

log = logging.getLogger(__name__)

# After a bug of ours: no busy loop.
PAUSE_SECONDS = 1.0

Retire = Callable[[ServedModel], Awaitable[None]]
UnloadReason = Literal["room", "idle", "asked"]


class Mover:
    """Loads what is waited for, and unloads what makes room for it, what was idle too long, and what it is asked to.

    Args:
        server: its memory, and how its models swap.
        library: where the models come from.
        slots: all models by id; who waits and who has leases is said there.
    """

    def __init__(self, server: ServerConfig, library: Library, slots: Mapping[str, Slot]) -> None:
        self._server = server
        self._library = library
        self._slots = slots
        self._cache = HostCache(server.weights.host_cache_bytes, keeps_unloaded=server.weights.keep_in_ram)
        self._prefetcher = Prefetcher(self._cache)
        self._retire: Retire
        self._on_change: Callable[[], None] = lambda: None

        # Checkpoints on their way to the disk; what is to be unloaded, and who waits for that.
        self._locating: dict[str, asyncio.Task[None]] = {}
        self._unloads: dict[str, asyncio.Future[None]] = {}
        self._woken = asyncio.Event()
        self._moving: asyncio.Task[None] | None = None

    async def start(self, preload: Sequence[Slot], *, retire: Retire, on_change: Callable[[], None]) -> None:
        """Loads these models in order, and everything else when it is asked for; raises `ServingError`."""
        self._retire = retire
        self._on_change = on_change
        for slot in preload:
            await self.locate(slot)
            check_preload(preload, self._server)
            await self._load(slot)
        self._moving = asyncio.create_task(self._move())

    async def close(self) -> None:
        """Ends the task; what is loaded stays."""
        self._prefetcher.close()
        tasks = [task for task in (self._moving, *self._locating.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Something has changed that it may act on."""
        self._woken.set()

    @property
    def reserved_bytes(self) -> int:
        """Of all models in memory, or on their way in or out."""
        return sum(slot.num_bytes for slot in self._slots.values() if slot.takes_memory)

    async def unload(self, slot: Slot) -> None:
        """Unloads a model; raises `RequestError` if somebody uses it first."""
        if slot.id not in self._unloads:
            self._unloads[slot.id] = asyncio.get_running_loop().create_future()
        self.wake()
        # Of several that asked one may leave.
        await asyncio.shield(self._unloads[slot.id])

    def prefetch(self, model_ids: Iterable[str]) -> None:
        """Brings models that are not loaded into host memory, and to the disk before that, when there is time."""
        for slot in (self._slots[model_id] for model_id in model_ids):
            if slot.path is not None and not slot.takes_memory and self._server.weights.keep_in_ram:
                self._read_ahead(slot)
            elif slot.path is None and slot.failure is None:
                self._locate_soon(slot)

    def is_locating(self, slot: Slot) -> bool:
        """Whether its checkpoint is being fetched."""
        return slot.id in self._locating

    async def locate(self, slot: Slot) -> None:
        """Fetches a checkpoint if need be, and finds out what it takes.

        Raises:
            ConfigError: it can never fit.
            ServingError: it cannot be used, or not be fetched.
        """
        if slot.memory is not None:
            return
        path, memory = await run_in_daemon_thread(partial(_find, self._library, slot.config), name="locate")
        check_fits(slot.config, memory.total_bytes, self._server)
        slot.path, slot.memory = path, memory

    def fail(self, slot: Slot, error: Exception) -> None:
        """Fails whoever waits for a model that cannot be loaded, and whoever asks for it in the near future."""
        self._fail(slot, _logged(slot, error))

    def _fail(self, slot: Slot, problem: "_Problem") -> None:
        slot.set_failed(problem.message, now=time.monotonic(), is_final=problem.is_final)
        slot.refuse_all(cannot_be_loaded(slot))
        self._show()

    # Deciding.

    async def _move(self) -> None:
        while True:
            self._woken.clear()
            try:
                move = self._next_move(time.monotonic())
                if not move.is_rest:
                    await self._carry_out(move)
                    continue
            except Exception:
                # Whoever waits gives up in time, and the next request tries again.
                log.exception("models could not be moved")
                move = _Move(wake_at=time.monotonic() + PAUSE_SECONDS)
            await self._rest_until(move.wake_at)

    def _next_move(self, now: float) -> "_Move":
        """Unload what was asked for, load what is wanted most, unload what is idle: the first that there is to do."""
        asked = self._asked_to_unload()
        if asked is not None:
            return _Move(unload=[asked], reason="asked")
        move = self._next_load(now)
        if not move.is_rest:
            return move
        idle_until = {slot: eviction.idle_until(slot, self._server.swap) for slot in self._slots.values()}
        ends = {slot: end for slot, end in idle_until.items() if end is not None}
        due = [slot for slot, end in ends.items() if end <= now]
        if due:
            return _Move(unload=due, reason="idle")
        return _Move(wake_at=min([move.wake_at, *ends.values()]))

    def _asked_to_unload(self) -> Slot | None:
        for model_id, done in tuple(self._unloads.items()):
            slot = self._slots[model_id]
            if slot.is_idle:
                return slot
            del self._unloads[model_id]
            if slot.takes_memory:
                done.set_exception(RequestError(f"the model `{slot.id}` is in use", kind="overloaded"))
            else:
                done.set_result(None)
        return None

    def _next_load(self, now: float) -> "_Move":
        """Goes through the wanted models in order of need until one can be loaded.

        If the places of busy models are needed, and that for long enough, they are closed. Then the models after the
        one that needs them may only take what is free, and will be free beside it.
        """
        swap = self._server.swap
        room = self._room()
        closing: set[Slot] = set()
        wake_at = math.inf
        for slot in self._wanted(now):
            evict = "never" if closing else swap.evict
            victims = eviction.victims_for(slot, self._slots.values(), room=room, evict=evict, now=now)
            if victims is None:
                self._read_ahead(slot)
                self._refuse_for_good(slot)
            elif all(victim.is_idle for victim in victims):
                return _Move(load=slot, unload=victims)
            else:
                self._read_ahead(slot)
                close_at = eviction.may_close_at(slot, victims, swap, now=now)
                if close_at <= now:
                    closing.update(victims)
                    room = room.smaller(room.plus(victims).minus(slot))
                wake_at = min(wake_at, close_at if close_at > now else math.inf)
        self._set_closing(closing, now)
        return _Move(wake_at=wake_at)

    def _wanted(self, now: float) -> list[Slot]:
        """What requests wait for, the neediest first, as far as it is on the disk; the rest is sent for."""
        wanted = [slot for slot in self._slots.values() if slot.is_wanted]
        for slot in wanted:
            if slot.memory is None:
                self._locate_soon(slot)
        located = [slot for slot in wanted if slot.memory is not None]
        timeout = self._server.swap.load_timeout_seconds
        return eviction.in_order_of_need(located, load_timeout_seconds=timeout, now=now)

    def _room(self) -> Room:
        num_models = sum(slot.takes_memory for slot in self._slots.values())
        return Room(self._server.memory_bytes - self.reserved_bytes, self._server.swap.max_loaded - num_models)

    def _refuse_for_good(self, slot: Slot) -> None:
        """Where nothing is ever unloaded, waiting is of no use."""
        swap = self._server.swap
        if swap.evict == "never" and swap.idle_timeout_seconds is None:
            message = f"there is no room for the model `{slot.id}`, and no other is unloaded for it"
            slot.refuse_all(RequestError(message, kind="overloaded"))

    def _set_closing(self, closing: set[Slot], now: float) -> None:
        for slot in self._slots.values():
            slot.is_closing = slot in closing
            if slot.is_open and slot.waiters:
                slot.grant_all(now)

    async def _rest_until(self, wake_at: float) -> None:
        seconds = None if math.isinf(wake_at) else max(0.0, wake_at - time.monotonic())
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    # Acting.

    async def _carry_out(self, move: "_Move") -> None:
        for slot in move.unload:
            # Before anything is waited for: nobody borrows it any more.
            slot.residency = "unloading"
        for slot in move.unload:
            await self._unload(slot, reason=move.reason)
        if move.load is not None and move.load.waiters:
            await self._load_or_fail(move.load)

    async def _load_or_fail(self, slot: Slot) -> None:
        try:
            await self._load(slot)
        except Exception as error:
            # The error itself would keep what was loaded: its traceback has the frames.
            problem = _logged(slot, error)
        else:
            slot.grant_all(time.monotonic())
            return
        await run_in_daemon_thread(free_after_failure, name="unload")
        self._fail(slot, problem)

    async def _load(self, slot: Slot) -> None:
        """Loads a model for which there is room; raises what the library raises, and is still "loading" then."""
        assert slot.path is not None, "it was located"
        assert self._room().holds(slot), "room was made"
        log.info("loading", extra=fields(model=slot.id, bytes=slot.num_bytes))
        slot.residency = "loading"
        self._show()
        began = time.monotonic()
        load = partial(_load, self._library, self._cache, slot.config, slot.path)
        try:
            with self._prefetcher.paused():
                self._prefetcher.forget(slot.id)
                model = await run_in_daemon_thread(load, name="load")
        except Exception:
            metrics.model_loads_total.labels(slot.id, "failed").inc()
            raise
        seconds = time.monotonic() - began
        slot.set_loaded(model, now=time.monotonic(), seconds=seconds)
        metrics.model_loads_total.labels(slot.id, "loaded").inc()
        metrics.model_load_seconds.labels(slot.id).observe(seconds)
        _log_loaded(slot, seconds=seconds)
        self._show()

    async def _unload(self, slot: Slot, *, reason: UnloadReason) -> None:
        assert slot.model is not None, "it is loaded"
        last_reference = [slot.model]
        slot.model = None
        slot.is_closing = False
        self._show()
        began = time.monotonic()
        await self._retire(last_reference[0])
        await run_in_daemon_thread(partial(_free, last_reference, self._cache, slot.id), name="unload")
        slot.residency = "unloaded"
        metrics.model_unloads_total.labels(slot.id, reason).inc()
        log.info("unloaded", extra=fields(model=slot.id, reason=reason, seconds=f"{time.monotonic() - began:.3f}"))
        self._show()
        if slot.id in self._unloads:
            self._unloads.pop(slot.id).set_result(None)

    def _locate_soon(self, slot: Slot) -> None:
        if slot.id not in self._locating:
            self._locating[slot.id] = asyncio.create_task(self._locate_in_background(slot))

    async def _locate_in_background(self, slot: Slot) -> None:
        try:
            await self.locate(slot)
        except Exception as error:
            self.fail(slot, error)
        finally:
            del self._locating[slot.id]
            self.wake()

    def _read_ahead(self, slot: Slot) -> None:
        """Fetches from the disk what waits for room, or will be used soon."""
        if slot.path is not None:
            self._prefetcher.want(slot.id, partial(self._library.weight_files, slot.config, slot.path))

    def _show(self) -> None:
        """Tells whoever wants to know that a model is somewhere else."""
        metrics.memory_reserved_bytes.set(self.reserved_bytes)
        for slot in self._slots.values():
            metrics.model_memory_bytes.labels(slot.id).set(slot.num_bytes if slot.takes_memory else 0)
        self._on_change()


class _Move(NamedTuple):
    """What is done next: first unloaded, then loaded; or a rest, at most until `wake_at`."""

    load: Slot | None = None
    unload: Sequence[Slot] = ()
    reason: UnloadReason = "room"
    wake_at: float = math.inf

    @property
    def is_rest(self) -> bool:
        return self.load is None and not self.unload


class _Found(NamedTuple):
    path: Path
    memory: ModelMemory


class _Problem(NamedTuple):
    message: str

    # No further attempt is of use.
    is_final: bool


def _logged(slot: Slot, error: Exception) -> _Problem:
    """Why a model cannot be loaded; a bug of ours with its traceback."""
    is_expected = isinstance(error, ServingError | OSError | MemoryError)
    message = str(error) if is_expected and str(error) else type(error).__name__
    log.error("cannot be loaded: %s", message, extra=fields(model=slot.id), exc_info=None if is_expected else error)
    return _Problem(message, is_final=isinstance(error, ConfigError))


def cannot_be_loaded(slot: Slot) -> RequestError:
    """Why a model that has failed is not there."""
    assert slot.failure is not None, "it has failed"
    message = f"the model `{slot.id}` cannot be loaded: {slot.failure.problem}"
    if slot.failure.is_final:
        return RequestError(message, kind="invalid_request", param="model")
    return RequestError(message, kind="unavailable")


def _find(library: Library, config: ModelConfig) -> _Found:
    path = library.locate(config)
    return _Found(path, library.measure(config, path))


def _load(library: Library, cache: HostCache, config: ModelConfig, path: Path) -> ServedModel:
    cache.take(config.id, library.weight_files(config, path))
    try:
        model = library.load(config, path)
    except BaseException:
        cache.give_back(config.id)
        raise
    # A first load may have made files that later ones read instead.
    cache.replace(config.id, library.weight_files(config, path))
    return model


def _free(last_reference: list[ServedModel], cache: HostCache, model_id: str) -> None:
    close_model(last_reference)
    # Only now, since pages that are mapped cannot be dropped.
    cache.give_back(model_id)


def _log_loaded(slot: Slot, *, seconds: float) -> None:
    status = slot.status
    what = {
        "model": status.id,
        "task": status.task,
        "dtype": status.dtype,
        "quantization": status.quantization,
        "path": status.path,
        "path_reason": status.path_reason,
        "kv_cache_dtype": status.kv_cache_dtype,
        "kernels": status.kernels,
        "max_context": status.max_context,
        "chat_template": status.chat_template,
        "bytes": status.memory_bytes,
        "seconds": f"{seconds:.1f}",
    }
    # Not every task has all of them.
    log.info("loaded", extra=fields(**{name: value for name, value in what.items() if value != ""}))
    if status.task == "text-generation" and status.chat_template == "none":
        log.info("no chat template: message contents are joined by newlines", extra=fields(model=status.id))
