"""The task that moves models in and out of memory, one at a time, within the budget.

It alone loads and unloads, and it alone decides; whoever gives back a lease, waits, or gives up waiting wakes it.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial

from flashgen_runtime import metrics
from flashgen_runtime.config import ServerConfig
from flashgen_runtime.errors import RequestError
from flashgen_runtime.logs import fields
from flashgen_runtime.models.base import Library, ServedModel
from flashgen_runtime.worker.capacity import check_fits, check_preload
from flashgen_runtime.worker.freeing import free_after_failure
from flashgen_runtime.worker.host_cache import HostCache
from flashgen_runtime.worker.load_reports import Problem, cannot_be_loaded, log_loaded, logged_problem
from flashgen_runtime.worker.plan import Plan, UnloadReason, plan_idle, plan_load, room_in
from flashgen_runtime.worker.prefetch import Prefetcher
from flashgen_runtime.worker.residency import Slot
from flashgen_runtime.worker.threads import run_in_daemon_thread
from flashgen_runtime.worker.transfers import find, free, load

log = logging.getLogger(__name__)

# After a bug of ours: no busy loop.
PAUSE_SECONDS = 1.0

Retire = Callable[[ServedModel], Awaitable[None]]


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
        path, memory = await run_in_daemon_thread(partial(find, self._library, slot.config), name="locate")
        check_fits(slot.config, memory.total_bytes, self._server)
        slot.path, slot.memory = path, memory

    def fail(self, slot: Slot, error: Exception) -> None:
        """Fails whoever waits for a model that cannot be loaded, and whoever asks for it in the near future."""
        self._fail(slot, logged_problem(slot, error))

    def _fail(self, slot: Slot, problem: Problem) -> None:
        slot.set_failed(problem.message, now=time.monotonic(), is_final=problem.is_final)
        slot.refuse_all(cannot_be_loaded(slot))
        self._show()

    # Deciding.

    async def _move(self) -> None:
        while True:
            self._woken.clear()
            try:
                plan = self._next(time.monotonic())
                if not plan.is_rest:
                    await self._carry_out(plan)
                    continue
            except Exception:
                # Whoever waits gives up in time, and the next request tries again.
                log.exception("models could not be moved")
                plan = Plan(wake_at=time.monotonic() + PAUSE_SECONDS)
            await self._rest_until(plan.wake_at)

    def _next(self, now: float) -> Plan:
        """Unload what was asked for, load what is wanted most, unload what is idle: the first that there is to do."""
        asked = self._asked_to_unload()
        if asked is not None:
            return Plan(unload=[asked], reason="asked")
        slots = self._slots.values()
        for slot in slots:
            if slot.is_wanted and slot.memory is None:
                self._locate_soon(slot)
        plan = plan_load(self._server, slots, now=now)
        self._tell(plan, now)
        if not plan.is_rest:
            return plan
        idle = plan_idle(self._server, slots, now=now)
        return idle._replace(wake_at=min(plan.wake_at, idle.wake_at))

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

    def _tell(self, plan: Plan, now: float) -> None:
        """Has those that wait or must make room know it."""
        for slot in plan.blocked:
            self._read_ahead(slot)
        for slot in plan.hopeless:
            message = f"there is no room for the model `{slot.id}`, and no other is unloaded for it"
            slot.refuse_all(RequestError(message, kind="overloaded"))
        if plan.closing is None:
            return
        for slot in self._slots.values():
            slot.is_closing = slot in plan.closing
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

    async def _carry_out(self, plan: Plan) -> None:
        for slot in plan.unload:
            # Before anything is waited for: nobody borrows it any more.
            slot.residency = "unloading"
        for slot in plan.unload:
            await self._unload(slot, reason=plan.reason)
        if plan.load is not None and plan.load.waiters:
            await self._load_or_fail(plan.load)

    async def _load_or_fail(self, slot: Slot) -> None:
        try:
            await self._load(slot)
        except Exception as error:
            # The error itself would keep what was loaded: its traceback has the frames.
            problem = logged_problem(slot, error)
        else:
            slot.grant_all(time.monotonic())
            return
        await run_in_daemon_thread(free_after_failure, name="unload")
        self._fail(slot, problem)

    async def _load(self, slot: Slot) -> None:
        """Loads a model for which there is room; raises what the library raises, and is still "loading" then."""
        assert slot.path is not None, "it was located"
        assert room_in(self._server, self._slots.values()).holds(slot), "room was made"
        log.info("loading", extra=fields(model=slot.id, bytes=slot.num_bytes))
        slot.residency = "loading"
        self._show()
        began = time.monotonic()
        work = partial(load, self._library, self._cache, slot.config, slot.path)
        try:
            with self._prefetcher.paused():
                self._prefetcher.forget(slot.id)
                model = await run_in_daemon_thread(work, name="load")
        except Exception:
            metrics.model_loads_total.labels(slot.id, "failed").inc()
            raise
        seconds = time.monotonic() - began
        slot.set_loaded(model, now=time.monotonic(), seconds=seconds)
        metrics.model_loads_total.labels(slot.id, "loaded").inc()
        metrics.model_load_seconds.labels(slot.id).observe(seconds)
        log_loaded(slot, seconds=seconds)
        self._show()

    async def _unload(self, slot: Slot, *, reason: UnloadReason) -> None:
        assert slot.model is not None, "it is loaded"
        last_reference = [slot.model]
        slot.model = None
        slot.is_closing = False
        self._show()
        began = time.monotonic()
        await self._retire(last_reference[0])
        await run_in_daemon_thread(partial(free, last_reference, self._cache, slot.id), name="unload")
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
