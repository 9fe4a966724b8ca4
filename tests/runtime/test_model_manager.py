"""Which models a worker has, by name, and which of them are in memory."""

import asyncio
import logging
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace as with_fields

from flashgen_runtime.errors import ConfigError, RequestError, WeightsError
from flashgen_runtime.messages import ModelStatus
from flashgen_runtime.models.base import ModelMemory
from flashgen_runtime.testing import FakeEmbeddings, FakeLibrary, fake_manager
from flashgen_runtime.worker import ModelManager, model_manager, residency
from tests.runtime_workers import TIMEOUT_SECONDS, manager_with, model_config, server_config, swap_config

CONFIGS = (model_config("one", aliases=("first", "uno")), model_config("two"))
SMALL = tuple(model_config(name) for name in "abc")


class Loads:
    """Makes models that are said to take 100 bytes, and remembers what it was asked to load."""

    def __init__(self, **num_bytes):
        self.num_bytes = num_bytes
        self.loaded = []
        self.closed = []
        self.problems = {}
        self.gates = {}
        self.missing = set()

    def memory(self, config):
        return ModelMemory(self.num_bytes.get(config.id, 100), 0, 0)

    def load(self, config):
        self.loaded.append(config.id)
        gate = self.gates.get(config.id)
        if gate is not None:
            gate.wait(TIMEOUT_SECONDS)
        if config.id in self.problems:
            raise self.problems[config.id]
        loads = self

        class Closing(FakeEmbeddings):
            def close(self):
                super().close()
                loads.closed.append(self.status.id)

        return Closing(ModelStatus(id=config.id))

    def manager(self, *configs, memory_bytes=1000, **swap):
        server = server_config(*(configs or SMALL), swap=swap_config(**swap), memory_bytes=memory_bytes)
        return ModelManager(server, FakeLibrary(server, load=self.load, memory=self.memory))


@pytest.fixture
def thread_gate():
    """An event that no thread waits for after the test."""
    gate = threading.Event()
    yield gate
    gate.set()


@asynccontextmanager
async def started(manager):
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await manager.start()
        try:
            yield manager
        finally:
            await manager.close()


async def use(manager, name):
    async with manager.lease(name) as model:
        return model.status.id


def states(manager):
    return "".join(status.residency[0] for status in manager.statuses)


async def until(condition):
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110  # conditions of several kinds
            await asyncio.sleep(0.001)


def test_preloaded_models_are_loaded_in_order():
    """At start, and no others."""
    loads = Loads()

    async def main():
        async with started(loads.manager(preload=("b", "a"), max_loaded=2)) as manager:
            return states(manager)

    assert asyncio.run(main()) == "llu"
    assert loads.loaded == ["b", "a"]


def test_the_log_says_how_a_model_runs(caplog):
    """What the model says about itself; what it does not have is left out."""
    status = ModelStatus(
        id="one", dtype="bfloat16", quantization="int8", path="plain", path_reason="no interface", speculative="ngram"
    )

    async def main():
        async with started(manager_with(lambda _: FakeEmbeddings(status), CONFIGS[0])):
            return

    with caplog.at_level("INFO"):
        asyncio.run(main())

    (record,) = [record for record in caplog.records if record.message == "loaded"]
    said = record.fields
    assert (said["dtype"], said["quantization"]) == ("bfloat16", "int8")
    assert (said["path"], said["path_reason"], said["speculative"]) == ("plain", "no interface", "ngram")
    assert "kernels" not in said


@pytest.mark.parametrize(("name", "model_id"), [("one", "one"), ("first", "one"), ("uno", "one"), ("two", "two")])
def test_a_model_is_leased_by_each_of_its_names(name, model_id):
    """An id and its aliases lead to the same model, which counts its leases."""
    manager = fake_manager(server_config(*CONFIGS))

    async def main():
        async with started(manager), manager.lease(name) as model, manager.lease(model_id) as same:
            return model is same, model.status.id, manager.num_leases(name)

    assert asyncio.run(main()) == (True, model_id, 2)
    assert manager.num_leases(name) == 0


def test_a_lease_ends_with_an_exception_too():
    """A request that fails gives its model back."""
    manager = fake_manager(server_config(*CONFIGS))

    async def main():
        async with started(manager), manager.lease("one"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert manager.num_leases("one") == 0


def test_an_unknown_name_is_refused():
    """With the names that there are."""
    with pytest.raises(RequestError, match="only `one`, `first`") as caught:
        asyncio.run(use(fake_manager(server_config(*CONFIGS)), "three"))
    assert caught.value.kind == "unknown_model"


def test_statuses_name_models_before_they_are_loaded():
    """What the configuration says is known from the start, the rest once a model is loaded, and for good."""

    async def main():
        server = server_config(*CONFIGS, swap=swap_config(preload=("one",)))
        manager = fake_manager(server)
        before = manager.statuses
        async with started(manager):
            await use(manager, "two")
            return before, manager.statuses

    before, after = asyncio.run(main())

    assert [(status.id, status.aliases, status.max_context) for status in before] == [
        ("one", ("first", "uno"), 0),
        ("two", (), 0),
    ]
    assert [(status.max_context, status.residency) for status in after] == [(4096, "unloaded"), (4096, "loaded")]


def test_a_preloaded_model_that_cannot_be_loaded_ends_the_start():
    """The error of `load` is passed on."""
    loads = Loads()
    loads.problems["a"] = WeightsError("model.safetensors", "is missing")

    with pytest.raises(WeightsError):
        asyncio.run(loads.manager(preload=("a",)).start())


def test_two_models_may_not_share_a_name():
    """A name that leads to two models is a mistake in the configuration."""
    with pytest.raises(ConfigError, match="`one` and `two` share the name `both`"):
        fake_manager(server_config(model_config("one", aliases=("both",)), model_config("two", aliases=("both",))))


def test_a_model_that_can_never_fit_is_refused_before_anything_is_loaded():
    """With both numbers, whether the compiler or the checkpoint says it."""
    loads = Loads(b=1001)

    with pytest.raises(ConfigError, match=r"model `b`: takes 1001 bytes .* has 1000"):
        asyncio.run(loads.manager(preload=("a",)).start())
    planned = with_fields(model_config("d"), weight_bytes=990, sequence_kv_bytes=20)
    with pytest.raises(ConfigError, match="takes 1010 bytes"):
        asyncio.run(loads.manager(SMALL[0], planned, preload=("a",)).start())
    assert loads.loaded == []


def test_preloaded_models_must_fit_together():
    """In number and in bytes."""
    loads = Loads(a=600, b=500)

    with pytest.raises(ConfigError, match="2 models are preloaded, `max_loaded` is 1"):
        asyncio.run(loads.manager(preload=("a", "b")).start())
    with pytest.raises(ConfigError, match="take 1100 bytes, there are 1000"):
        asyncio.run(loads.manager(preload=("a", "b"), max_loaded=2).start())


def test_a_request_loads_its_model_and_unloads_another():
    """First the old one goes, then the new one comes; what was closed is not used again."""
    loads = Loads()

    async def main():
        async with started(loads.manager()) as manager:
            return [await use(manager, name) for name in "abab"], states(manager)

    assert asyncio.run(main()) == (["a", "b", "a", "b"], "ulu")
    assert loads.loaded == ["a", "b", "a", "b"]
    assert loads.closed == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("evict", "gone"),
    [("lru", "b"), ("lfu", "c")],
)
def test_the_policy_chooses_who_goes(evict, gone):
    """The least recently used, or the least frequently used."""
    loads = Loads()

    async def main():
        configs = (*SMALL, model_config("d"))
        async with started(loads.manager(*configs, max_loaded=3, evict=evict)) as manager:
            for name in "bbacad":
                await use(manager, name)

    asyncio.run(main())
    assert loads.closed == [gone]


def test_a_preloaded_model_goes_last():
    """Even if it was used longest ago; but where nothing else helps it goes too."""
    loads = Loads(c=950)

    async def main():
        async with started(loads.manager(preload=("a",), max_loaded=2)) as manager:
            for name in "bbc":
                await use(manager, name)

    asyncio.run(main())
    assert loads.closed == ["b", "a"]


def test_only_as_many_models_go_as_must():
    """Where a big one goes anyway, small ones that were chosen before it stay."""
    loads = Loads(a=100, b=600, c=700)

    async def main():
        async with started(loads.manager(max_loaded=3)) as manager:
            for name in "abc":
                await use(manager, name)
            return states(manager)

    assert asyncio.run(main()) == "lul"


def test_where_nothing_is_evicted_a_request_is_refused_at_once():
    """`never` keeps what is loaded; waiting would be of no use."""
    loads = Loads()

    async def main():
        async with started(loads.manager(evict="never")) as manager:
            await use(manager, "a")
            with pytest.raises(RequestError, match="no room for the model `b`") as caught:
                await use(manager, "b")
            return caught.value.kind, states(manager)

    assert asyncio.run(main()) == ("overloaded", "luu")


def test_a_model_in_use_is_not_evicted():
    """Who wants its place waits until the lease ends."""
    loads = Loads()

    async def main():
        async with started(loads.manager()) as manager:
            async with manager.lease("a"):
                waiting = asyncio.create_task(use(manager, "b"))
                await asyncio.sleep(0.05)
                meanwhile = states(manager)
            return meanwhile, await waiting

    assert asyncio.run(main()) == ("luu", "b")


def test_requests_for_one_model_share_its_load(thread_gate):
    """However many ask, one load is in flight, and a caller that leaves does not end it."""
    loads = Loads()
    loads.gates["a"] = thread_gate

    async def main():
        async with started(loads.manager()) as manager:
            tasks = [asyncio.create_task(use(manager, "a")) for _ in range(5)]
            await until(lambda: loads.loaded)
            tasks[0].cancel()
            await asyncio.sleep(0)
            thread_gate.set()
            return await asyncio.gather(*tasks[1:]), manager.num_leases("a"), states(manager)

    assert asyncio.run(main()) == (["a"] * 4, 0, "luu")
    assert loads.loaded == ["a"]


def test_a_request_waits_with_a_deadline(thread_gate):
    """Then it fails with what is going on; the load goes on, and serves the next one."""
    loads = Loads()
    loads.gates["a"] = thread_gate

    async def main():
        async with started(loads.manager(load_timeout_seconds=0.05)) as manager:
            with pytest.raises(RequestError, match=r"`a` is loading, not loaded, after 0\.05 s") as caught:
                await use(manager, "a")
            thread_gate.set()
            await until(lambda: states(manager) == "luu")
            return caught.value.kind, await use(manager, "a")

    assert asyncio.run(main()) == ("unavailable", "a")
    assert loads.loaded == ["a"]


def test_the_queue_is_bounded(monkeypatch, thread_gate):
    """One request too many is refused, those that wait are served."""
    monkeypatch.setattr(model_manager, "MAX_WAITING", 1)
    loads = Loads()
    loads.gates["a"] = thread_gate

    async def main():
        async with started(loads.manager()) as manager:
            first = asyncio.create_task(use(manager, "a"))
            await until(lambda: loads.loaded)
            with pytest.raises(RequestError) as caught:
                await use(manager, "b")
            thread_gate.set()
            return caught.value.kind, await first

    assert asyncio.run(main()) == ("overloaded", "a")


def test_a_steady_stream_does_not_starve_others():
    """After a while a busy model takes no new requests, until the one that waits has been served."""
    loads = Loads()

    async def main():
        async with started(loads.manager(load_timeout_seconds=2)) as manager:

            async def stream():
                while True:
                    async with manager.lease("a"):
                        await asyncio.sleep(0.01)

            streams = [asyncio.create_task(stream()) for _ in range(3)]
            await asyncio.sleep(0.02)
            served = await use(manager, "b")
            await until(lambda: states(manager) == "luu")
            for task in streams:
                task.cancel()
            await asyncio.wait(streams)
            return served

    assert asyncio.run(main()) == "b"
    assert loads.loaded == ["a", "b", "a"]


def test_a_model_that_was_closed_is_opened_again_when_nobody_wants_its_place():
    """The request that waited gave up: those that queued behind it are served without another load."""
    loads = Loads()

    async def main():
        async with started(loads.manager(load_timeout_seconds=1)) as manager, manager.lease("a"):
            wanting = asyncio.create_task(use(manager, "b"))
            await asyncio.sleep(0.4)
            queued = asyncio.create_task(use(manager, "a"))
            await asyncio.sleep(0.02)
            was_queued = manager.num_waiting("a") == 1
            wanting.cancel()
            return was_queued, await queued

    assert asyncio.run(main()) == (True, "a")
    assert loads.loaded == ["a"]


def test_what_fails_to_load_fails_its_requests(monkeypatch):
    """With the reason; for a while nobody tries again, then the next request does."""
    monkeypatch.setattr(residency, "RETRY_SECONDS", 0.05)
    loads = Loads()
    loads.problems["a"] = WeightsError("model.safetensors", "is truncated")

    async def main():
        async with started(loads.manager()) as manager:
            problems = []
            for _ in range(2):
                with pytest.raises(RequestError) as caught:
                    await use(manager, "a")
                problems.append((caught.value.kind, caught.value.message))
            failed, reserved = manager.statuses[0], manager.reserved_bytes
            del loads.problems["a"]
            await asyncio.sleep(0.06)
            return problems, failed, reserved, await use(manager, "a"), manager.statuses[0]

    problems, failed, reserved, served, after = asyncio.run(main())

    message = "the model `a` cannot be loaded: model.safetensors: is truncated"
    assert problems == [("unavailable", message)] * 2
    assert (failed.residency, failed.problem, reserved) == ("failed", "model.safetensors: is truncated", 0)
    assert (served, after.residency, after.problem) == ("a", "loaded", "")
    assert loads.loaded == ["a", "a"]


def test_a_bug_while_loading_is_logged_and_ends_nothing(caplog):
    """The worker goes on with its other models."""
    loads = Loads()
    loads.problems["a"] = ZeroDivisionError()

    async def main():
        async with started(loads.manager()) as manager:
            with pytest.raises(RequestError, match="ZeroDivisionError"):
                await use(manager, "a")
            return await use(manager, "b")

    assert asyncio.run(main()) == "b"
    assert any(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)


def test_a_folder_that_is_missing_fails_its_own_model_only():
    """One that is not preloaded is tried again when it is asked for; the others are served."""

    class Missing(FakeLibrary):
        def locate(self, config):
            if config.id == "a":
                raise WeightsError(config.id, "no such folder")
            return super().locate(config)

    async def main():
        server = server_config(*SMALL, swap=swap_config())
        async with started(ModelManager(server, Missing(server))) as manager:
            with pytest.raises(RequestError, match="no such folder"):
                await use(manager, "a")
            return await use(manager, "b"), states(manager)

    assert asyncio.run(main()) == ("b", "flu")


def test_a_checkpoint_is_fetched_when_it_is_asked_for(thread_gate):
    """Fetching takes no place: models that are on the disk are loaded meanwhile. One that cannot fit is refused."""

    class Remote(FakeLibrary):
        def is_on_disk(self, config):
            return config.id == "b"

        def locate(self, config):
            if config.id == "a":
                thread_gate.wait(TIMEOUT_SECONDS)
            return Path(config.id)

    async def main():
        loads = Loads(c=1001)
        server = server_config(*SMALL, swap=swap_config(), memory_bytes=1000)
        async with started(ModelManager(server, Remote(server, memory=loads.memory))) as manager:
            waiting = asyncio.create_task(use(manager, "a"))
            first = await use(manager, "b")
            thread_gate.set()
            with pytest.raises(RequestError, match=r"takes 1001 bytes .* has 1000") as caught:
                await use(manager, "c")
            return first, await waiting, caught.value.kind

    assert asyncio.run(main()) == ("b", "a", "invalid_request")


def test_an_idle_model_is_unloaded_after_its_time():
    """But for a preloaded one."""
    loads = Loads()

    async def main():
        swap = {"preload": ("a",), "max_loaded": 2, "idle_timeout_seconds": 0.05}
        async with started(loads.manager(**swap)) as manager:
            await use(manager, "b")
            before = states(manager)
            await until(lambda: loads.closed)
            await until(lambda: manager.reserved_bytes == 100)
            return before, states(manager)

    assert asyncio.run(main()) == ("llu", "luu")
    assert loads.closed == ["b"]


def test_a_model_is_loaded_and_unloaded_on_request():
    """A preloaded one too; one in use stays."""
    loads = Loads()

    async def main():
        async with started(loads.manager(preload=("a",), max_loaded=2)) as manager:
            await manager.load("b")
            async with manager.lease("b"):
                with pytest.raises(RequestError, match="is in use"):
                    await manager.unload("b")
            await asyncio.gather(manager.unload("a"), manager.unload("a"), manager.unload("c"))
            return states(manager), manager.reserved_bytes

    assert asyncio.run(main()) == ("ulu", 100)
    assert loads.closed == ["a"]


def test_changes_are_told():
    """Whoever publishes statuses hears of every step."""
    loads = Loads()
    seen = []

    async def main():
        manager = loads.manager()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await manager.start(on_change=lambda: seen.append(states(manager)))
            await use(manager, "a")
            await use(manager, "b")
            await manager.close()

    asyncio.run(main())
    # unloaded, loading and loaded; the u of "unloading" is the same.
    assert seen == ["luu", "luu", "uuu", "uuu", "ulu", "ulu"]


def test_a_failed_model_gives_way_for_longer_each_time():
    """Loading what cannot be loaded costs the others; a final failure is never tried again."""
    slot = residency.Slot(model_config(), is_pinned=False)
    waits = []
    for _ in range(8):
        slot.set_failed("is damaged", now=0)
        waits.append(slot.failure.retry_at)
    slot.set_failed("does not fit", now=0, is_final=True)

    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]
    assert slot.failure.is_final
