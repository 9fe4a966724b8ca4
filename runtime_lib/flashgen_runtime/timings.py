"""Where the time of a cold start goes: from the start of the process to its first token, split into stages.

`with stage("weights"):` anywhere in the process counts. Of stages inside of each other each second counts once, for the
inner one; what no stage claims is "other". Waiting for the first request is no part of it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from flashgen_runtime.logs import fields
from flashgen_runtime.metrics import cold_start_seconds

log = logging.getLogger(__name__)

Stage = Literal[
    # From the start of the process to the first line of ours.
    "interpreter",
    "imports",
    "configuration",
    "tokenizer",
    # The model's classes and shapes, without weights.
    "skeleton",
    "weights",
    # The first forward pass; the weights of a streamed start arrive in it.
    "warm_up",
]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Timings:
    """The stages of one start.

    Args:
        started: when the process started, on the clock's scale.
        clock: gives seconds; for tests.
    """

    def __init__(self, *, started: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = started
        self._lock = threading.Lock()
        self._seconds: dict[Stage, float] = {}
        self._total: float | None = None
        self._is_over = False

        # Of each thread: the seconds that inner stages of the open ones took, innermost last.
        self._open = threading.local()

    @property
    def is_over(self) -> bool:
        """Whether the first token is out; later stages belong to no start."""
        return self._is_over

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, in their order; "other" is what is left of the time until `ready`, if that was."""
        with self._lock:
            found: dict[str, float] = {name: self._seconds[name] for name in STAGES if name in self._seconds}
            if self._total is not None:
                return found | {"other": max(0.0, self._total - sum(found.values()))}
            return found

    def add(self, name: Stage, seconds: float) -> None:
        """Counts time that was measured elsewhere."""
        with self._lock:
            if not self._is_over:
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """What runs inside belongs to `name`."""
        inner: list[float] = self._open.__dict__.setdefault("inner", [])
        inner.append(0.0)
        began = self._clock()
        try:
            yield
        finally:
            elapsed = self._clock() - began
            self.add(name, elapsed - inner.pop())
            if inner:
                inner[-1] += elapsed

    def ready(self) -> None:
        """The process takes requests: tells how long that took."""
        with self._lock:
            if self._total is not None:
                return
            self._total = self._clock() - self._started
        self._publish("ready")

    def step(self, seconds: float, *, has_output: bool) -> None:
        """A step of an engine took so long; the first one with an output ends the start, and the whole is told."""
        if self._is_over:
            return
        self.add("warm_up", seconds)
        with self._lock:
            self._total = (self._total or 0.0) + seconds
            self._is_over = has_output
        if has_output:
            self._publish("first token")

    def _publish(self, event: str) -> None:
        found = self.seconds
        for name, seconds in found.items():
            cold_start_seconds.labels(name).set(seconds)
        rounded = {name: f"{seconds:.3f}" for name, seconds in found.items()}
        log.info("cold start", extra=fields(until=event, seconds=f"{sum(found.values()):.3f}", **rounded))


def process_started() -> float:
    """When this process started, on the scale of `time.monotonic`; now where the system does not tell."""
    try:
        after_boot = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.monotonic()
    # `/proc` counts from the boot, sleep included.
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - after_boot
    return time.monotonic() - max(0.0, age)


def _of_process() -> Timings:
    started = process_started()
    timings = Timings(started=started)
    timings.add("interpreter", time.monotonic() - started)
    return timings


_current = _of_process()


def current() -> Timings:
    """The start of this process."""
    return _current


def restart() -> None:
    """A new start begins now: of a process that was forked from one that had everything imported."""
    global _current
    _current = Timings(started=time.monotonic())


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """What runs inside belongs to a stage of this process's start."""
    with _current.stage(name):
        yield
