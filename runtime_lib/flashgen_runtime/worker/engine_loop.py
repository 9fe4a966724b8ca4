"""The thread that steps every served model that has work, and nothing else.

The event loop hands it requests through a thread-safe queue and is called back with the replies of each step, or of
several when it is behind. The thread is a daemon: a forward pass that hangs does not keep the process from ending.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Literal, NamedTuple

from flashgen_runtime import metrics, timings
from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import Reply, RequestFailure
from flashgen_runtime.models.base import ServedModel

log = logging.getLogger(__name__)

# Steps whose replies the event loop has not taken yet: enough to keep the engine busy meanwhile, few enough to bound
# memory when the event loop is slow.
MAX_UNTAKEN_STEPS = 32


_Outcome = Literal["command", "nothing", "stop"]


class Step(NamedTuple):
    """What one step brought a model's requests."""

    model: ServedModel
    replies: list[Reply]


class EngineLoop:
    """Owns every model from its first request until `remove`: only this thread calls `add`, `step` and `abort`.

    Args:
        on_steps: takes the replies of the steps since the last call, in order, on the event loop.
        on_crash: hears of a model whose `step` raised, on the event loop. What the model holds is then unknown: the
            loop does not touch it again, and refuses requests for it.
    """

    def __init__(
        self,
        *,
        on_steps: Callable[[list[Step]], None],
        on_crash: Callable[[ServedModel, Exception], None],
    ) -> None:
        self._on_steps = on_steps
        self._on_crash = on_crash
        self._inbox: SimpleQueue[_Add | _Abort | _Remove | _Stop] = SimpleQueue()

        # Steps on their way to the event loop; how many more it may have; whether it knows that there are some.
        self._outbox: deque[Step] = deque()
        self._room = threading.Semaphore(MAX_UNTAKEN_STEPS)
        self._is_announced = False

        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._event_loop: asyncio.AbstractEventLoop | None = None

        # Of the thread alone.
        self._models: list[ServedModel] = []
        self._crashed: list[ServedModel] = []

        # For `seconds_without_progress`.
        self._is_busy = False
        self._last_progress = time.monotonic()

    def start(self) -> None:
        """Starts the thread; replies go to the event loop that runs now."""
        self._event_loop = asyncio.get_running_loop()
        self._thread.start()

    def add(self, model: ServedModel, request_id: str, prepared: Any) -> None:
        """Queues what `model.prepare` made; a refusal comes back as a reply."""
        self._ask(_Add(model, request_id, prepared))

    def abort(self, model: ServedModel, request_id: str) -> None:
        """Frees what a request holds before the next step."""
        self._ask(_Abort(model, request_id))

    async def remove(self, model: ServedModel) -> None:
        """Has the thread let go of a model without open requests: it keeps no reference, and a step has ended."""
        removed = asyncio.get_running_loop().create_future()
        self._inbox.put(_Remove(model, removed))
        await removed

    def stop(self) -> None:
        """Ends the thread after the step that runs."""
        self._inbox.put(_Stop())
        self._room.release()

    def join(self, timeout_seconds: float) -> bool:
        """Waits for the thread's end; `False` when it still runs. Blocks."""
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def seconds_without_progress(self) -> float:
        """How long there has been work and no step ended; 0 without work."""
        if not self._is_busy and self._inbox.empty():
            return 0.0
        return time.monotonic() - self._last_progress

    def _ask(self, command: "_Add | _Abort") -> None:
        if not self._is_busy and self._inbox.empty():
            # Idle until now, which was no lack of progress.
            self._beat()
        self._inbox.put(command)

    def _run(self) -> None:
        while (outcome := self._take_command()) != "stop":
            if outcome == "nothing":
                self._is_busy = True
                self._step_all()

    def _take_command(self) -> _Outcome:
        """Acts on what was asked; waits while no model has work.

        NOTE: neither this nor what it calls keeps a model in a variable while it waits: a removed one must go.
        """
        try:
            command = self._inbox.get(timeout=self._seconds_to_wait())
        except Empty:
            # Nothing was asked; or a model has waited long enough, which the next round sees.
            return "nothing"
        match command:
            case _Add():
                self._add(command)
            case _Abort():
                self._abort(command)
            case _Remove():
                removed = self._remove(command)
                # Before anybody hears of it.
                del command
                self._call(_settle, removed)
            case _Stop():
                return "stop"
        return "command"

    def _step_all(self) -> None:
        for model in tuple(self._models):
            if model.has_work:
                self._step(model)

    def _seconds_to_wait(self) -> float | None:
        """For something to be asked; `None` is as long as it takes."""
        self._beat()
        if any(model.has_work for model in self._models):
            return 0
        self._is_busy = False
        waits = [model.seconds_until_work for model in self._models]
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _add(self, command: "_Add") -> None:
        model, request_id, prepared = command
        if model in self._crashed:
            self._refuse(model, request_id, RequestError("the engine has crashed", kind="internal"))
            return
        try:
            model.add(prepared)
        except RequestError as error:
            self._refuse(model, request_id, error)
        except Exception:
            log.exception("request %s could not be added", request_id)
            self._refuse(model, request_id, RequestError("internal error", kind="internal"))
        else:
            if model not in self._models:
                self._models.append(model)

    def _refuse(self, model: ServedModel, request_id: str, error: RequestError) -> None:
        self._hand_over(Step(model, [failure_of(request_id, error)]))

    def _abort(self, command: "_Abort") -> None:
        if command.model not in self._models:
            return
        try:
            command.model.abort(command.request_id)
        except Exception as error:
            self._crash(command.model, error)

    def _remove(self, command: "_Remove") -> "asyncio.Future[None]":
        """Forgets a model; what its end is to be told to."""
        if command.model in self._models:
            self._models.remove(command.model)
        return command.removed

    def _step(self, model: ServedModel) -> None:
        began = time.perf_counter()
        try:
            replies = model.step()
        except Exception as error:
            self._crash(model, error)
            return
        self._beat()
        metrics.steps_total.labels(model.status.id).inc()
        seconds = time.perf_counter() - began
        metrics.step_seconds.labels(model.status.id).observe(seconds)
        timings.current().step(seconds, has_output=bool(replies))
        if replies:
            self._hand_over(Step(model, replies))

    def _crash(self, model: ServedModel, error: Exception) -> None:
        log.error("the engine of model %s crashed", model.status.id, exc_info=error)
        self._models.remove(model)
        self._crashed.append(model)
        self._call(self._on_crash, model, error)

    def _beat(self) -> None:
        self._last_progress = time.monotonic()

    def _hand_over(self, step: Step) -> None:
        """Waits while the event loop is too far behind; `stop` ends the wait."""
        self._room.acquire()
        self._outbox.append(step)
        if not self._is_announced:
            self._is_announced = True
            self._call(self._take_steps)

    def _take_steps(self) -> None:
        """On the event loop: everything that is there."""
        # Before the outbox is emptied: what comes later is announced again.
        self._is_announced = False
        steps = []
        while self._outbox:
            steps.append(self._outbox.popleft())
            self._room.release()
        self._on_steps(steps)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._event_loop is not None, "the thread runs after `start`"
        try:
            self._event_loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The event loop has ended, and with it everyone who could read a reply.
            self._inbox.put(_Stop())


class _Add(NamedTuple):
    model: ServedModel
    request_id: str
    prepared: Any


class _Abort(NamedTuple):
    model: ServedModel
    request_id: str


class _Remove(NamedTuple):
    model: ServedModel
    removed: "asyncio.Future[None]"


class _Stop(NamedTuple):
    pass


def _settle(removed: "asyncio.Future[None]") -> None:
    if not removed.done():
        removed.set_result(None)


def failure_of(request_id: str, error: RequestError) -> RequestFailure:
    """The reply that says why a request is not served."""
    return RequestFailure(request_id=request_id, kind=error.kind, message=error.message, param=error.param)
