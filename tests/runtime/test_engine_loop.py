"""The engine's thread, without a worker around it."""

import asyncio
import threading
import time
import weakref

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import ModelStatus, TextDelta
from flashgen_runtime.worker import engine_loop
from flashgen_runtime.worker.engine_loop import EngineLoop
from tests.runtime_workers import TIMEOUT_SECONDS


class Countdown:
    """A model whose requests are numbers: each step counts every one down, and at 0 it is finished."""

    seconds_until_work = None

    def __init__(self, name="countdown"):
        self.status = ModelStatus(id=name)
        self.requests = {}
        self.threads = set()
        self.may_step = threading.Event()
        self.may_step.set()
        self.stepping = threading.Event()

    @property
    def has_work(self):
        return bool(self.requests)

    def add(self, prepared):
        request_id, number = prepared
        if number == 13:
            raise RequestError("13 is never served", kind="invalid_request")
        if number == 666:
            raise ZeroDivisionError
        self.requests[request_id] = number

    def step(self):
        self.threads.add(threading.current_thread().name)
        self.stepping.set()
        self.may_step.wait()
        if 99 in self.requests.values():
            raise ZeroDivisionError
        self.requests = {request_id: number - 1 for request_id, number in self.requests.items()}
        replies = [
            TextDelta(request_id=request_id, text=str(number), finish_reason=None if number else "stop")
            for request_id, number in self.requests.items()
        ]
        self.requests = {request_id: number for request_id, number in self.requests.items() if number}
        return replies

    def abort(self, request_id):
        self.requests.pop(request_id, None)


class Hesitant(Countdown):
    """Has work some time after something was added."""

    @property
    def has_work(self):
        return self.seconds_until_work == 0

    @property
    def seconds_until_work(self):
        return max(0, self.due - time.monotonic()) if self.requests else None

    def add(self, prepared):
        super().add(prepared)
        self.due = time.monotonic() + 0.05


class Running:
    """A loop whose steps and crashes can be awaited."""

    def __init__(self):
        self.replies = asyncio.Queue()
        self.crashes = asyncio.Queue()
        self.loop = EngineLoop(
            on_steps=self.take,
            on_crash=lambda model, error: self.crashes.put_nowait((model, error)),
        )

    async def __aenter__(self):
        self.loop.start()
        return self

    async def __aexit__(self, *_):
        self.loop.stop()
        assert await asyncio.to_thread(self.loop.join, TIMEOUT_SECONDS)

    def take(self, steps):
        for step in steps:
            self.replies.put_nowait(step)

    async def texts(self):
        """What the next step brought, by request."""
        _, replies = await self.replies.get()
        return {reply.request_id: reply.text for reply in replies}


def run(test):
    async def limited():
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await test

    asyncio.run(limited())


def test_every_step_brings_one_list_of_replies():
    """Replies arrive step by step, in order, and come from a thread of the loop's own."""

    async def main():
        async with Running() as running:
            model = Countdown()

            running.loop.add(model, "a", ("a", 3))

            assert [await running.texts() for _ in range(3)] == [{"a": "2"}, {"a": "1"}, {"a": "0"}]
            assert model.threads == {"engine"}

    run(main())


def test_a_request_joins_while_others_run():
    """What is added while a step runs is part of the next one."""

    async def main():
        async with Running() as running:
            model = Countdown()
            model.may_step.clear()
            running.loop.add(model, "a", ("a", 3))
            await asyncio.to_thread(model.stepping.wait)

            running.loop.add(model, "b", ("b", 1))
            model.may_step.set()

            assert [await running.texts() for _ in range(2)] == [{"a": "2"}, {"a": "1", "b": "0"}]

    run(main())


def test_a_model_that_waits_is_stepped_when_its_time_has_come():
    """Nothing has to be asked for that, and the wait is no lack of progress."""

    async def main():
        async with Running() as running:
            model = Hesitant()
            began = time.monotonic()

            running.loop.add(model, "a", ("a", 1))
            await asyncio.sleep(0.02)
            is_idle = running.loop.seconds_without_progress == 0

            assert await running.texts() == {"a": "0"}
            assert time.monotonic() - began >= 0.05
            assert is_idle

    run(main())


def test_models_take_turns():
    """Every model with work is stepped; none waits for another to finish."""

    async def main():
        async with Running() as running:
            one, two = Countdown("one"), Countdown("two")
            one.may_step.clear()
            running.loop.add(one, "a", ("a", 3))
            await asyncio.to_thread(one.stepping.wait)
            running.loop.add(two, "b", ("b", 3))
            one.may_step.set()

            order = [(await running.replies.get())[0].status.id for _ in range(6)]

            assert order == ["one", "one", "two", "one", "two", "two"]

    run(main())


def test_an_aborted_request_takes_no_further_step():
    """An abort that comes during a step frees the request before the next one."""

    async def main():
        async with Running() as running:
            model = Countdown()
            model.may_step.clear()
            running.loop.add(model, "a", ("a", 1000))
            await asyncio.to_thread(model.stepping.wait)

            running.loop.abort(model, "a")
            running.loop.abort(model, "unknown")
            running.loop.add(model, "b", ("b", 1))
            model.may_step.set()

            assert [await running.texts() for _ in range(2)] == [{"a": "999"}, {"b": "0"}]

    run(main())


def test_a_refused_request_is_a_reply():
    """`add` may refuse, or have a bug: either way that request fails and the loop goes on."""

    async def main():
        async with Running() as running:
            model = Countdown()

            running.loop.add(model, "unlucky", ("unlucky", 13))
            running.loop.add(model, "bug", ("bug", 666))
            running.loop.add(model, "fine", ("fine", 1))

            failures = [(await running.replies.get())[1][0] for _ in range(2)]
            assert [(failure.request_id, failure.kind) for failure in failures] == [
                ("unlucky", "invalid_request"),
                ("bug", "internal"),
            ]
            assert await running.texts() == {"fine": "0"}

    run(main())


def test_a_crashed_model_is_not_touched_again():
    """After a crash the loop reports it, refuses that model's requests, and serves the other models."""

    async def main():
        async with Running() as running:
            bad, good = Countdown("bad"), Countdown("good")

            running.loop.add(bad, "a", ("a", 99))
            model, error = await running.crashes.get()
            running.loop.abort(bad, "a")
            running.loop.add(bad, "b", ("b", 1))
            running.loop.add(good, "c", ("c", 1))

            assert (model, type(error)) == (bad, ZeroDivisionError)
            _, (failure,) = await running.replies.get()
            assert (failure.request_id, failure.kind) == ("b", "internal")
            assert await running.texts() == {"c": "0"}

    run(main())


def test_a_removed_model_is_gone():
    """The thread keeps no reference, not even while it waits; what others have open goes on."""

    async def main():
        async with Running() as running:
            leaving, staying = Countdown("leaving"), Countdown("staying")
            running.loop.add(staying, "b", ("b", 2))
            running.loop.add(leaving, "a", ("a", 1))
            replies = [await running.texts() for _ in range(3)]

            await running.loop.remove(leaving)
            await running.loop.remove(leaving)
            still_there = weakref.ref(leaving)
            del leaving
            is_gone = still_there() is None
            running.loop.add(staying, "c", ("c", 1))

            assert {"a": "0"} in replies
            assert is_gone
            assert await running.texts() == {"c": "0"}

    run(main())


def test_a_model_is_removed_after_its_step():
    """Whoever closes it next finds nobody in it, and what was aborted before is aborted."""

    async def main():
        async with Running() as running:
            model = Countdown()
            model.may_step.clear()
            running.loop.add(model, "a", ("a", 1000))
            await asyncio.to_thread(model.stepping.wait)

            running.loop.abort(model, "a")
            removing = asyncio.create_task(running.loop.remove(model))
            await asyncio.sleep(0.01)
            was_removed = removing.done()
            model.may_step.set()
            await removing

            assert not was_removed
            assert not model.requests

    run(main())


def test_progress_is_measured_only_while_there_is_work():
    """An idle loop is not stuck; one whose step hangs is, for as long as it hangs."""

    async def main():
        async with Running() as running:
            model = Countdown()
            idle = running.loop.seconds_without_progress
            model.may_step.clear()
            running.loop.add(model, "a", ("a", 1))
            await asyncio.to_thread(model.stepping.wait)

            first = running.loop.seconds_without_progress
            await asyncio.to_thread(threading.Event().wait, 0.01)
            second = running.loop.seconds_without_progress
            model.may_step.set()
            await running.texts()

            assert idle == 0
            assert second - first >= 0.01

    run(main())


def test_a_long_idle_time_is_no_lack_of_progress():
    """A request after an hour of quiet does not make the loop look stuck for an hour."""

    async def main():
        async with Running() as running:
            model = Countdown()
            running.loop.add(model, "a", ("a", 1))
            await running.texts()
            model.may_step.clear()
            model.stepping.clear()
            # The thread gives its replies before it looks for more work, and tells nobody that it found none.
            while running.loop.seconds_without_progress:  # noqa: ASYNC110  # so there is nothing to wait for
                await asyncio.sleep(0)
            running.loop._last_progress -= 3600

            running.loop.add(model, "b", ("b", 1))
            at_once = running.loop.seconds_without_progress
            await asyncio.to_thread(model.stepping.wait)
            in_the_step = running.loop.seconds_without_progress
            model.may_step.set()
            await running.texts()

            assert max(at_once, in_the_step) < 3600

    run(main())


def test_a_slow_event_loop_holds_the_engine_back():
    """The engine runs ahead of the event loop by so many steps, and no further."""

    async def main():
        async with Running() as running:
            model = Countdown()
            running.loop.add(model, "a", ("a", 1000))

            # The event loop is blocked: nobody takes replies until the engine has stopped by itself.
            taken = []
            while len(taken) < 2 or taken[-1] != taken[-2]:
                threading.Event().wait(0.05)
                taken.append(model.requests["a"])

            # One step more has ended and waits for its turn.
            assert taken[-1] == 1000 - engine_loop.MAX_UNTAKEN_STEPS - 1

    run(main())
