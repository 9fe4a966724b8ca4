"""What is read ahead, and when."""

import asyncio
import os
import threading
from pathlib import Path

from msgspec.structs import replace

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.testing import FakeLibrary
from flashgen_runtime.worker import ModelManager, host_cache
from flashgen_runtime.worker.host_cache import HostCache
from flashgen_runtime.worker.prefetch import Prefetcher
from tests.runtime_workers import TIMEOUT_SECONDS, model_config, server_config, swap_config


def run(test):
    async def limited():
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await test

    return asyncio.run(limited())


async def until(condition):
    while not condition():  # noqa: ASYNC110  # conditions of several kinds
        await asyncio.sleep(0.001)


class Reads:
    """Notes the order in which files are opened for reading ahead, and may hold a reader up."""

    def __init__(self, monkeypatch):
        self.order = []
        self.may_read = threading.Event()
        self.may_read.set()
        monkeypatch.setattr(host_cache.ReadAhead, "_read_file", self.read_file)

    def read_file(self, path, _, may_go_on):
        if path.name not in self.order:
            self.order.append(path.name)
        self.may_read.wait(TIMEOUT_SECONDS)
        return may_go_on()


def test_models_are_read_one_after_the_other(monkeypatch):
    """In the order in which they were wanted, each once; one that nobody wants any more is left out."""
    reads = Reads(monkeypatch)
    reads.may_read.clear()

    async def main():
        prefetcher = Prefetcher(HostCache(None, keeps_unloaded=True))
        for name in "abab":
            prefetcher.want(name, lambda name=name: (Path(name),))
        prefetcher.want("c", lambda: (Path("c"),))
        prefetcher.forget("b")
        await until(lambda: reads.order)
        first = list(reads.order)
        reads.may_read.set()
        await until(lambda: len(reads.order) == 2)
        return first, reads.order

    assert run(main()) == (["a"], ["a", "c"])


def test_nothing_is_read_while_a_model_is_loaded(monkeypatch):
    """The load has the disk to itself, and what was interrupted goes on afterwards."""
    reads = Reads(monkeypatch)

    async def main():
        prefetcher = Prefetcher(HostCache(None, keeps_unloaded=True))
        with prefetcher.paused():
            prefetcher.want("a", lambda: (Path("a"),))
            await asyncio.sleep(0.02)
            meanwhile = list(reads.order)
        await until(lambda: reads.order)
        return meanwhile, reads.order

    assert run(main()) == ([], ["a"])


def test_a_checkpoint_that_cannot_be_read_is_left_to_its_load(monkeypatch):
    """The next one is read all the same."""
    reads = Reads(monkeypatch)

    def missing():
        raise WeightsError("model.safetensors", "is missing")

    async def main():
        prefetcher = Prefetcher(HostCache(None, keeps_unloaded=True))
        prefetcher.want("bad", missing)
        prefetcher.want("good", lambda: (Path("good"),))
        await until(lambda: reads.order)

    run(main())
    assert reads.order == ["good"]


class FilesLibrary(FakeLibrary):
    """Each model has one file with its name."""

    def weight_files(self, config, path):
        return (path / config.id,)


def test_what_waits_for_room_is_read_ahead(monkeypatch):
    """While the model before it is still in use."""
    reads = Reads(monkeypatch)

    async def main():
        server = server_config(*map(model_config, "ab"), swap=swap_config())
        manager = ModelManager(server, FilesLibrary(server))
        await manager.start()
        async with manager.lease("a"):
            waiting = asyncio.create_task(manager.load("b"))
            await until(lambda: reads.order)
            residency = manager.status("b").residency
        await waiting
        await manager.close()
        return residency

    assert run(main()) == "unloaded"
    assert reads.order == ["b"]


def test_neighbours_are_read_ahead_when_a_model_is_used(monkeypatch):
    """As the specification says; those that are loaded are not."""
    reads = Reads(monkeypatch)
    first = replace(model_config("a"), prefetch=("b", "c"))

    async def main():
        server = server_config(first, *map(model_config, "bc"), swap=swap_config(max_loaded=2, preload=("b",)))
        manager = ModelManager(server, FilesLibrary(server))
        await manager.start()
        await manager.load("a")
        await until(lambda: reads.order)
        await manager.close()

    run(main())
    assert reads.order == ["c"]


def test_files_are_really_read(tmp_path):
    """Through a thread of the prefetcher's own."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(100_000))
    cache = HostCache(None, keeps_unloaded=True)

    async def main():
        prefetcher = Prefetcher(cache)
        prefetcher.want("a", lambda: (path,))
        await until(lambda: not prefetcher._jobs)
        prefetcher.close()

    run(main())
    assert cache.num_bytes == 100_000
