"""What a worker knows of one of its models: where it is, who uses it, who waits for it. Deciding is `eviction`'s."""

import asyncio
import math
from pathlib import Path

import msgspec

from flashgen_runtime import metrics
from flashgen_runtime.config import ModelConfig
from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import ModelStatus, Residency
from flashgen_runtime.models.base import ModelMemory, ServedModel

# Until a model has been loaded once: what a modest disk gives, and a start that costs something at any size.
ASSUMED_BYTES_PER_SECOND = 1e9
LEAST_LOAD_SECONDS = 0.05

# After that time a use counts half.
USE_HALF_LIFE_SECONDS = 300.0

# A model that could not be loaded is tried again after the first, then after twice as long each time.
RETRY_SECONDS = 5.0
MAX_RETRY_SECONDS = 300.0


class Waiter:
    """One request that waits for its model."""

    __slots__ = ("granted", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.granted: asyncio.Future[ServedModel] = asyncio.get_running_loop().create_future()

    @property
    def has_lease(self) -> bool:
        """Whether a lease was counted for it."""
        return self.granted.done() and not self.granted.cancelled() and self.granted.exception() is None


class Failure(msgspec.Struct, frozen=True):
    """Why a model is not there."""

    problem: str

    # Nobody tries before; infinite where trying is of no use.
    retry_at: float

    @property
    def is_final(self) -> bool:
        return math.isinf(self.retry_at)


class Slot:
    """One model of the worker. Owned by the event loop's thread; times are of `time.monotonic`."""

    def __init__(self, config: ModelConfig, *, is_pinned: bool) -> None:
        self.config = config

        # Evicted after all that are not.
        self.is_pinned = is_pinned

        # Known once the checkpoint is on the disk.
        self.path: Path | None = None
        self.memory: ModelMemory | None = None

        self.residency: Residency = "unloaded"
        self.model: ServedModel | None = None
        self.failure: Failure | None = None
        self.num_failures = 0

        # Requests that use it, and those that wait until they may.
        self.leases = 0
        self.waiters: dict[Waiter, None] = {}

        # Its place is needed: who has a lease finishes, nobody gets one.
        self.is_closing = False

        self.loaded_at = -math.inf
        self.last_used = -math.inf
        self._load_seconds: float | None = None
        self._uses = 0.0
        self._status = ModelStatus(id=config.id, aliases=config.aliases, task=config.task)

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def is_open(self) -> bool:
        """Whether a request may have it at once."""
        return self.residency == "loaded" and not self.is_closing

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and nobody uses it."""
        return self.residency == "loaded" and self.leases == 0

    @property
    def is_wanted(self) -> bool:
        """Whether requests wait for it to be loaded."""
        return bool(self.waiters) and self.residency in ("unloaded", "failed")

    @property
    def takes_memory(self) -> bool:
        return self.residency in ("loading", "loaded", "unloading")

    @property
    def num_bytes(self) -> int:
        """What it takes while it is loaded; 0 until that is known."""
        return self.memory.total_bytes if self.memory is not None else 0

    @property
    def load_seconds(self) -> float:
        """How long loading takes: as last time, or a guess."""
        if self._load_seconds is None:
            return LEAST_LOAD_SECONDS + self.num_bytes / ASSUMED_BYTES_PER_SECOND
        return max(self._load_seconds, LEAST_LOAD_SECONDS)

    @property
    def status(self) -> ModelStatus:
        """For the API servers; what only a loaded model can tell is remembered from the last time."""
        problem = self.failure.problem if self.failure is not None else ""
        return msgspec.structs.replace(
            self._status, residency=self.residency, memory_bytes=self.num_bytes, problem=problem
        )

    def oldest_wait(self, now: float) -> float:
        """Seconds since the request came that waits longest; 0 without one."""
        return max((now - waiter.since for waiter in self.waiters), default=0.0)

    def total_wait(self, now: float) -> float:
        """Of all waiting requests together."""
        return sum(now - waiter.since for waiter in self.waiters)

    def uses(self, now: float) -> float:
        """How often it was used, recent uses first."""
        if self._uses == 0:
            return 0.0
        return float(self._uses * 0.5 ** ((now - self.last_used) / USE_HALF_LIFE_SECONDS))

    def lend(self, now: float) -> ServedModel:
        """Counts one more lease of a loaded model."""
        assert self.model is not None, "only a loaded model is lent"
        self.leases += 1
        self._uses = self.uses(now) + 1
        self.last_used = now
        return self.model

    def take_back(self, now: float) -> None:
        """One lease less."""
        self.leases -= 1
        self.last_used = now

    def add_waiter(self, now: float) -> Waiter:
        waiter = Waiter(now)
        self.waiters[waiter] = None
        self._show_waiting()
        return waiter

    def remove_waiter(self, waiter: Waiter) -> None:
        """Forgets one; one that is forgotten already is ignored."""
        self.waiters.pop(waiter, None)
        self._show_waiting()

    def grant_all(self, now: float) -> None:
        """Lends the model to everybody who waits for it."""
        for waiter in self._take_waiters():
            metrics.model_wait_seconds.labels(self.id).observe(now - waiter.since)
            waiter.granted.set_result(self.lend(now))

    def refuse_all(self, error: RequestError) -> None:
        """Tells everybody who waits that it is for nothing."""
        for waiter in self._take_waiters():
            waiter.granted.set_exception(error)

    def _take_waiters(self) -> list[Waiter]:
        # One whose caller has just left removes itself.
        waiters = [waiter for waiter in self.waiters if not waiter.granted.done()]
        self.waiters.clear()
        self._show_waiting()
        return waiters

    def _show_waiting(self) -> None:
        metrics.requests_waiting_for_model.labels(self.id).set(len(self.waiters))

    def set_loaded(self, model: ServedModel, *, now: float, seconds: float) -> None:
        self.model = model
        self.residency = "loaded"
        self.failure = None
        self.num_failures = 0
        self.loaded_at = now
        self.last_used = now
        self._load_seconds = seconds
        self._status = model.status

    def set_failed(self, problem: str, *, now: float, is_final: bool = False) -> None:
        wait = min(RETRY_SECONDS * 2**self.num_failures, MAX_RETRY_SECONDS)
        self.num_failures += 1
        self.residency = "failed"
        self.failure = Failure(problem, math.inf if is_final else now + wait)
