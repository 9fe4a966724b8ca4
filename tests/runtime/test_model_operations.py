"""Loading and unloading over a worker's operations port."""

import asyncio
import json
import urllib.error
import urllib.request
from contextlib import asynccontextmanager

import pytest

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.models.base import ModelMemory
from flashgen_runtime.operations import OperationsServer
from flashgen_runtime.testing import FakeLibrary
from flashgen_runtime.worker import ModelManager
from flashgen_runtime.worker.health import WorkerProbes
from flashgen_runtime.worker.model_operations import WorkerModels
from tests.runtime_workers import in_state, model_config, running_worker, server_config, swap_config

MODELS = (model_config("org/a", aliases=("a",)), model_config("b"), model_config("bad"))


class Library(FakeLibrary):
    def load(self, config, path):
        if config.id == "bad":
            raise WeightsError("model.safetensors", "is damaged")
        return super().load(config, path)


@asynccontextmanager
async def serving(**swap):
    """A worker of fakes of 100 bytes, its manager, and a function that asks its port."""
    server = server_config(*MODELS, swap=swap_config(**swap))
    manager = ModelManager(server, Library(server, memory=lambda _: ModelMemory(80, 20, 0)))
    async with running_worker(manager) as running:
        models = WorkerModels(running.worker, manager)
        port = OperationsServer(WorkerProbes(running.worker), host="127.0.0.1", port=0, models=models)
        await port.start()
        await in_state(running.connection, "ready")

        async def ask(path, method="POST"):
            return await asyncio.to_thread(exchange, f"http://127.0.0.1:{port.port}{path}", method)

        yield running, manager, ask
        await port.close()


def exchange(url, method):
    request = urllib.request.Request(url, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            body = error.read()
            return error.code, json.loads(body) if body.startswith(b"{") else body.decode()


def test_a_model_is_loaded_and_unloaded():
    """By id, with its slash encoded, or by alias; the answer comes when it is done."""

    async def main():
        async with serving() as (_, _, ask):
            loaded = await ask("/models/org%2Fa/load")
            listed = await ask("/models", "GET")
            unloaded = await ask("/models/a/unload")
            return loaded, listed, unloaded

    loaded, listed, unloaded = asyncio.run(main())

    assert loaded[0] == unloaded[0] == 200
    assert loaded[1].pop("seconds") >= 0
    assert loaded[1] == {"id": "org/a", "residency": "loaded", "memory_bytes": 100}
    assert (unloaded[1]["residency"], unloaded[1]["memory_bytes"]) == ("unloaded", 0)
    assert [(model["id"], model["residency"], model["memory_bytes"]) for model in listed[1]] == [
        ("org/a", "loaded", 100),
        ("b", "unloaded", 100),
        ("bad", "unloaded", 100),
    ]


def test_what_cannot_be_done_says_why():
    """404 for an unknown model, 409 for one in use or without room, 503 for one that failed."""

    async def main():
        async with serving(evict="never") as (_, manager, ask):
            unknown = await ask("/models/other/load")
            failed = await ask("/models/bad/load")
            async with manager.lease("a"):
                in_use = await ask("/models/a/unload")
            no_room = await ask("/models/b/load")
            return unknown, failed, in_use, no_room

    unknown, failed, in_use, no_room = asyncio.run(main())

    assert (unknown[0], in_use, failed[0], no_room[0]) == (
        404,
        (409, {"error": "the model `org/a` is in use"}),
        503,
        409,
    )
    assert "is damaged" in failed[1]["error"]
    assert "no room" in no_room[1]["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/models/a/load", 405),
        ("PUT", "/models/a/load", 405),
        ("POST", "/models/a/dance", 405),
        ("POST", "/models", 405),
        ("GET", "/models/a", 404),
    ],
)
def test_other_requests_are_refused(method, path, status):
    """Nothing is loaded by a GET."""

    async def main():
        async with serving() as (_, manager, ask):
            return (await ask(path, method))[0], manager.reserved_bytes

    assert asyncio.run(main()) == (status, 0)


def test_a_worker_that_ends_loads_nothing():
    """It says its state."""

    async def main():
        async with serving() as (running, _, ask):
            await running.worker.drain()
            return await ask("/models/a/load")

    assert asyncio.run(main()) == (503, {"error": "the worker's state is draining"})
