"""The worker with fake engines over the memory transport."""

import asyncio
import threading
from contextlib import aclosing
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from flashgen_runtime.errors import WeightsError, WorkerLostError
from flashgen_runtime.messages import (
    Embeddings,
    EmbedRequest,
    GenerateRequest,
    GenerationParams,
    ModelStatus,
    RequestFailure,
)
from flashgen_runtime.models.text_generation import TextGenerationModel
from flashgen_runtime.testing import CharacterTokenizer, FakeEngine, FakeLibrary, fake_manager
from flashgen_runtime.transport.memory import MemoryEndpoint, MemoryLine
from flashgen_runtime.worker import Worker, worker
from flashgen_runtime.worker.open_requests import OpenRequest
from tests.runtime_workers import (
    TIMEOUT_SECONDS,
    generate,
    in_state,
    manager_with,
    model_config,
    replies_of,
    running_worker,
    server_config,
    text_of,
)

MANY_TOKENS = 4000
TWO_MODELS = (model_config("one", aliases=("first",)), model_config("two"))


class GatedEngine(FakeEngine):
    """Takes a step only when the test lets it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.gate = threading.Semaphore(0)
        self.stepped = threading.Event()

    def step(self):
        self.gate.acquire()
        outputs = super().step()
        self.stepped.set()
        return outputs

    async def one_step(self):
        """Lets it take one step, and waits until it has."""
        self.stepped.clear()
        self.gate.release()
        await asyncio.to_thread(self.stepped.wait, TIMEOUT_SECONDS)

    def let_run(self):
        for _ in range(10_000):
            self.gate.release()


class SlowEngine(FakeEngine):
    """Would take seconds for `MANY_TOKENS`; says when a request is aborted."""

    def __init__(self):
        super().__init__(delay_seconds=0.001)
        self.aborted = threading.Event()

    def abort(self, request_id):
        super().abort(request_id)
        self.aborted.set()

    async def has_aborted(self):
        await asyncio.to_thread(self.aborted.wait, TIMEOUT_SECONDS)


def manager_of(engine, *, id="fake"):  # noqa: A002
    model = TextGenerationModel(ModelStatus(id=id), engine=engine, tokenizer=CharacterTokenizer())
    return manager_with(lambda _: model, model_config(id))


def test_choices_of_one_request_end_together():
    """The request is open until its last choice has ended; their tokens are counted one by one."""
    params = GenerationParams(n=2, max_tokens=3, stop=("c",))
    request = GenerateRequest(request_id="r", model="counted", prompt="abc", params=params)

    async def main():
        async with running_worker(fake_manager(server_config(model_config("counted")))) as running:
            await in_state(running.connection, "ready")
            return await replies_of(running.connection, request)

    replies = asyncio.run(main())

    texts = ["".join(reply.text for reply in replies if reply.index == index) for index in range(2)]
    assert texts == ["ab", "b"]
    assert [reply.open_choices for reply in replies if reply.finish_reason] == [1, 0]
    # a, b and c; b and c.
    assert REGISTRY.get_sample_value("flashgen_generation_tokens_total", {"model": "counted"}) == 5


def run(test):
    async def limited():
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await test

    asyncio.run(limited())


def test_a_request_is_answered_by_the_law_of_the_fake():
    """A prompt comes back character by character, and the last reply has the counts."""

    async def main():
        async with running_worker(fake_manager(server_config())) as running:
            await in_state(running.connection, "ready")

            replies = await replies_of(running.connection, generate("r", "abc", max_tokens=5))

            assert text_of(replies) == "abcab"
            assert (replies[-1].finish_reason, replies[-1].prompt_tokens, replies[-1].completion_tokens) == (
                "length",
                3,
                5,
            )

    run(main())


def test_many_requests_share_steps():
    """Requests that are open together are answered together, each with its own text."""

    async def main():
        async with running_worker(fake_manager(server_config())) as running:
            await in_state(running.connection, "ready")
            requests = [generate(f"r{number}", chr(65 + number), max_tokens=10) for number in range(20)]

            answers = await asyncio.gather(*(replies_of(running.connection, request) for request in requests))

            assert [text_of(replies) for replies in answers] == [chr(65 + number) * 10 for number in range(20)]

    run(main())


def test_two_models_answer_by_name_and_alias():
    """A worker serves several models; each is found by its id and by its aliases."""

    async def main():
        async with running_worker(fake_manager(server_config(*TWO_MODELS))) as running:
            status = await in_state(running.connection, "ready")

            answers = [
                text_of(await replies_of(running.connection, generate(name, name, model=name, max_tokens=5)))
                for name in ("one", "first", "two")
            ]

            assert answers == ["oneon", "first", "twotw"]
            assert [(model.id, model.aliases) for model in status.models] == [("one", ("first",)), ("two", ())]

    run(main())


def test_embeddings_are_answered():
    """An `EmbedRequest` has one reply with one vector per input."""

    async def main():
        models = fake_manager(server_config(model_config(task="feature-extraction")))
        async with running_worker(models) as running:
            await in_state(running.connection, "ready")

            replies = await replies_of(
                running.connection, EmbedRequest(request_id="r", model="fake", inputs=["a", "b"])
            )

            assert [type(reply) for reply in replies] == [Embeddings]
            assert len(replies[0].vectors) == 2

    run(main())


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (generate("r", model="other"), "unknown_model"),
        (generate("r", prompt=""), "invalid_request"),
        (generate("r", prompt="x" * 4096), "context_length"),
        (EmbedRequest(request_id="r", model="fake", inputs=["a"]), "invalid_request"),
    ],
    ids=["unknown model", "empty prompt", "too long", "wrong task"],
)
def test_what_cannot_be_served_is_refused(request_, kind):
    """A refusal is one reply that says why; the worker goes on."""

    async def main():
        async with running_worker(fake_manager(server_config())) as running:
            await in_state(running.connection, "ready")

            replies = await replies_of(running.connection, request_)

            assert [type(reply) for reply in replies] == [RequestFailure]
            assert replies[0].kind == kind
            assert text_of(await replies_of(running.connection, generate("next"))) == "abcab"

    run(main())


def test_a_mistake_of_ours_fails_one_request():
    """An unexpected exception while a request is prepared is an internal failure of that request alone."""

    class Broken(CharacterTokenizer):
        def encode(self, text, *, add_special_tokens):
            if text == "bad":
                raise ZeroDivisionError
            return super().encode(text, add_special_tokens=add_special_tokens)

    async def main():
        model = TextGenerationModel(ModelStatus(id="fake"), engine=FakeEngine(), tokenizer=Broken())
        async with running_worker(manager_with(lambda _: model)) as running:
            await in_state(running.connection, "ready")

            (failure,) = await replies_of(running.connection, generate("r", "bad"))

            assert (failure.kind, failure.message) == ("internal", "internal error")
            assert text_of(await replies_of(running.connection, generate("next"))) == "abcab"

    run(main())


def test_requests_are_refused_while_loading():
    """Before it is ready the worker says so, names its models, and refuses requests."""

    async def main():
        may_load = threading.Event()
        fakes = FakeLibrary(server_config())

        def load(config):
            may_load.wait()
            return fakes.load(config, Path())

        async with running_worker(manager_with(load)) as running:
            status = await in_state(running.connection, "loading")
            (failure,) = await replies_of(running.connection, generate("r"))
            may_load.set()
            await in_state(running.connection, "ready")

            assert [model.id for model in status.models] == ["fake"]
            assert failure.kind == "unavailable"
            assert "loading" in failure.message

    run(main())


def test_a_model_that_cannot_be_loaded_is_reported():
    """The state says "failed" and why, requests are refused with it, and `run` raises the error."""

    async def main():
        def load(_):
            raise WeightsError("model.safetensors", "is truncated")

        async with running_worker(manager_with(load)) as running:
            status = await in_state(running.connection, "failed")
            (failure,) = await replies_of(running.connection, generate("r"))

            assert status.detail == "model.safetensors: is truncated"
            assert failure.kind == "unavailable"
            assert "truncated" in failure.message
            with pytest.raises(WeightsError):
                await running.run

    run(main())


def test_leaving_early_frees_the_request():
    """A reader that closes its stream frees what the request holds in the engine."""

    async def main():
        engine = SlowEngine()
        async with running_worker(manager_of(engine)) as running:
            await in_state(running.connection, "ready")
            async with aclosing(running.connection.stream(generate("r", max_tokens=MANY_TOKENS))) as stream:
                await anext(stream)

            await engine.has_aborted()

            assert engine.request_ids == ()
            assert engine.num_steps < MANY_TOKENS

    run(main())


def test_a_server_that_leaves_frees_its_requests():
    """The end of a connection aborts what it had open, without any further send."""

    async def main():
        engine = SlowEngine()
        async with running_worker(manager_of(engine)) as running:
            await in_state(running.connection, "ready")
            stream = running.connection.stream(generate("r", max_tokens=MANY_TOKENS))
            await anext(stream)

            await running.connection.close()
            await engine.has_aborted()

            assert engine.request_ids == ()
            assert engine.num_steps < MANY_TOKENS
            with pytest.raises(WorkerLostError):
                [reply async for reply in stream]

    run(main())


def test_a_lease_lasts_as_long_as_its_request():
    """A model is leased from a request's arrival to its end."""

    async def main():
        engine = GatedEngine()
        manager = manager_of(engine)
        async with running_worker(manager) as running:
            await in_state(running.connection, "ready")
            async with aclosing(running.connection.stream(generate("r", max_tokens=2))) as stream:
                engine.gate.release()
                await anext(stream)
                leases_while_open = manager.num_leases("fake")
                engine.let_run()
                await anext(stream)
            await running.worker.drain()

            assert leases_while_open == 1
            assert manager.num_leases("fake") == 0

    run(main())


def test_draining_finishes_open_requests_and_refuses_new_ones():
    """From SIGTERM on nothing new is taken, and nothing that was taken is cut short."""

    async def main():
        engine = GatedEngine()
        async with running_worker(manager_of(engine)) as running:
            await in_state(running.connection, "ready")
            old = asyncio.create_task(replies_of(running.connection, generate("old")))
            await engine.one_step()

            drain = asyncio.create_task(running.worker.drain())
            await in_state(running.connection, "draining")
            (failure,) = await replies_of(running.connection, generate("new"))
            engine.let_run()
            await drain
            await running.run

            assert failure.kind == "unavailable"
            assert "draining" in failure.message
            assert text_of(await old) == "abcab"

    run(main())


def test_draining_ends_after_its_time():
    """A request that takes too long ends with a failure, not with silence."""

    async def main():
        engine = GatedEngine()
        async with running_worker(manager_of(engine), drain_seconds=0.05) as running:
            await in_state(running.connection, "ready")
            old = asyncio.create_task(replies_of(running.connection, generate("old")))
            await engine.one_step()

            await running.worker.drain()

            assert (await old)[-1].kind == "unavailable"
            engine.let_run()

    run(main())


def test_draining_while_loading_ends_at_once():
    """SIGTERM does not wait for weights."""

    async def main():
        may_load = threading.Event()
        manager = manager_with(lambda _: may_load.wait())
        async with running_worker(manager) as running:
            await in_state(running.connection, "loading")

            await running.worker.drain()
            await running.run

            may_load.set()

    run(main())


def test_a_crashed_engine_fails_its_requests_and_ends_the_worker():
    """The requests of the engine that crashed fail; those of other models finish; then `run` raises."""

    async def main():
        good, bad = GatedEngine(), FakeEngine(fail_after=2)
        engines = {"good": good, "bad": bad}

        def load(config):
            return TextGenerationModel(
                ModelStatus(id=config.id), engine=engines[config.id], tokenizer=CharacterTokenizer()
            )

        manager = manager_with(load, model_config("good"), model_config("bad"))
        async with running_worker(manager) as running:
            await in_state(running.connection, "ready")
            open_request = asyncio.create_task(replies_of(running.connection, generate("g", model="good")))
            await good.one_step()
            failing = asyncio.create_task(replies_of(running.connection, generate("b", model="bad")))
            good.let_run()

            assert (await failing)[-1].kind == "internal"
            assert text_of(await open_request) == "abcab"
            with pytest.raises(RuntimeError, match="the fake engine fails"):
                await running.run
            status = await in_state(running.connection, "failed")
            assert "bad" in status.detail

    run(main())


def test_a_worker_holds_so_many_requests(monkeypatch):
    """Beyond its limit a worker refuses requests, so that its memory is bounded."""

    async def main():
        monkeypatch.setattr(worker, "MAX_OPEN_REQUESTS", 1)
        engine = GatedEngine()
        async with running_worker(manager_of(engine)) as running:
            await in_state(running.connection, "ready")
            first = asyncio.create_task(replies_of(running.connection, generate("first")))
            await engine.one_step()

            (failure,) = await replies_of(running.connection, generate("second"))
            engine.let_run()

            assert failure.kind == "overloaded"
            assert text_of(await first) == "abcab"

    run(main())


def test_two_servers_share_a_worker():
    """Each API server gets the replies of its own requests; an id that another one has open is refused."""

    async def main():
        engine = GatedEngine()
        async with running_worker(manager_of(engine)) as running:
            other = running.line.connect()
            await other.start()
            await in_state(running.connection, "ready")
            first = asyncio.create_task(replies_of(running.connection, generate("r", "a")))
            await engine.one_step()

            (failure,) = await replies_of(other, generate("r", "b"))
            second = asyncio.create_task(replies_of(other, generate("s", "b")))
            engine.let_run()

            assert failure.kind == "invalid_request"
            assert [text_of(await first), text_of(await second)] == ["aaaaa", "bbbbb"]
            await other.close()

    run(main())


def test_a_closed_worker_loses_its_requests():
    """`close` does not wait: what is open ends on the API server's side."""

    async def main():
        async with running_worker(manager_of(SlowEngine())) as running:
            await in_state(running.connection, "ready")
            stream = running.connection.stream(generate("r", max_tokens=MANY_TOKENS))
            await anext(stream)

            await running.worker.close()

            with pytest.raises(WorkerLostError):
                [reply async for reply in stream]

    run(main())


def test_a_worker_that_cannot_receive_ends():
    """A deaf worker would be ready for ever and serve nobody."""

    class Deaf(MemoryEndpoint):
        async def receive(self):
            raise OSError("deaf")

    async def main():
        worker = Worker(Deaf(MemoryLine()), fake_manager(server_config()))

        with pytest.raises(OSError, match="deaf"):
            await worker.run()

        await worker.close()

    run(main())


def test_a_request_that_is_cancelled_before_it_begins_is_forgotten():
    """A task that never ran has no `finally`: its request must leave the table all the same."""

    async def main():
        async with running_worker(fake_manager(server_config())) as running:
            await in_state(running.connection, "ready")
            stream = running.connection.stream(generate("r"))
            sending = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait([sending])

            await running.worker.drain()

            assert len(running.worker._open) == 0

    run(main())


def test_finishing_twice_is_finishing_once():
    """A final reply and a cancellation may cross."""

    async def main():
        request = OpenRequest("r", b"server")

        request.finish()
        request.finish()
        request.cancel()

        assert request.finished.done()

    run(main())
