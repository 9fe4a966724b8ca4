"""Random traffic over many models: what holds whatever happens."""

import asyncio
import random
import threading
import time

import pytest

from flashgen_runtime.errors import RequestError, WeightsError
from flashgen_runtime.messages import ModelStatus
from flashgen_runtime.models.base import ModelMemory
from flashgen_runtime.testing import FakeEmbeddings, FakeLibrary
from flashgen_runtime.worker import ModelManager, residency
from tests.runtime_workers import TIMEOUT_SECONDS, model_config, server_config, swap_config

MEMORY_BYTES = 1000
MAX_LOADED = 4
NUM_REQUESTS = 250
SIZES = {f"m{number}": size for number, size in enumerate([100, 150, 200, 250, 300, 400, 500, 700, 1000])}


class Ledger:
    """Counts what models take from before they are loaded until after they are closed, whatever the manager says."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.num_bytes = 0
        self.peak_bytes = 0
        self.num_models = 0
        self.peak_models = 0
        self.num_loads = 0
        self.users = dict.fromkeys(SIZES, 0)
        self.evicted_in_use = []

    def take(self, name, sign):
        with self.lock:
            self.num_bytes += sign * SIZES[name]
            self.num_models += sign
            self.peak_bytes = max(self.peak_bytes, self.num_bytes)
            self.peak_models = max(self.peak_models, self.num_models)

    def load(self, config):
        self.take(config.id, 1)
        with self.lock:
            # Not the first, which is the preloaded one.
            seconds, fails = self.random.uniform(0, 0.003), self.num_loads > 0 and self.random.random() < 0.05
            self.num_loads += 1
        time.sleep(seconds)
        if fails:
            self.take(config.id, -1)
            raise WeightsError(config.id, "is damaged")
        ledger = self

        class Model(FakeEmbeddings):
            def close(self):
                if ledger.users[config.id]:
                    ledger.evicted_in_use.append(config.id)
                time.sleep(0.0005)
                ledger.take(config.id, -1)

        return Model(ModelStatus(id=config.id))


async def request(manager, ledger, name, *, seconds):
    """One caller; what it got."""
    try:
        async with manager.lease(name) as model:
            ledger.users[name] += 1
            try:
                await asyncio.sleep(seconds)
                return model.status.id == name
            finally:
                ledger.users[name] -= 1
    except RequestError as error:
        return error.kind


async def traffic(manager, ledger, rng):
    """Callers that come at random times for models of which some are popular; every fifth leaves early."""
    tasks = []
    weights = [1 / rank for rank in range(1, len(SIZES) + 1)]
    for _ in range(NUM_REQUESTS):
        (name,) = rng.choices(list(SIZES), weights)
        task = asyncio.create_task(request(manager, ledger, name, seconds=rng.uniform(0, 0.01)))
        tasks.append(task)
        if rng.random() < 0.2:
            asyncio.get_running_loop().call_later(rng.uniform(0, 0.02), task.cancel)
        if rng.random() < 0.05:
            tasks.append(asyncio.create_task(unload(manager, rng.choice(list(SIZES)))))
        await asyncio.sleep(rng.uniform(0, 0.003))
    return await asyncio.gather(*tasks, return_exceptions=True)


async def unload(manager, name):
    try:
        await manager.unload(name)
    except RequestError as error:
        return error.kind
    return True


@pytest.mark.parametrize(("seed", "evict"), [(1, "lru"), (2, "lfu"), (3, "lru")])
def test_random_traffic_keeps_within_the_budget(seed, evict, monkeypatch):
    """Bytes and models stay within their limits, nothing is closed under a request, and every request ends."""
    monkeypatch.setattr(residency, "RETRY_SECONDS", 0.005)
    monkeypatch.setattr(residency, "MAX_RETRY_SECONDS", 0.01)
    ledger = Ledger(seed)
    swap = swap_config(
        max_loaded=MAX_LOADED, evict=evict, preload=("m0",), idle_timeout_seconds=0.2, load_timeout_seconds=5
    )
    server = server_config(*map(model_config, SIZES), swap=swap, memory_bytes=MEMORY_BYTES)
    library = FakeLibrary(server, load=ledger.load, memory=lambda config: ModelMemory(SIZES[config.id], 0, 0))
    manager = ModelManager(server, library)
    reserved = []

    async def main():
        async with asyncio.timeout(TIMEOUT_SECONDS * 3):
            await manager.start(on_change=lambda: reserved.append(manager.reserved_bytes))
            results = await traffic(manager, ledger, random.Random(seed))
            leases = [manager.num_leases(name) + manager.num_waiting(name) for name in SIZES]
            await manager.close()
            return results, leases

    results, leases = asyncio.run(main())

    assert max(reserved) <= MEMORY_BYTES
    assert 0 < ledger.peak_bytes <= MEMORY_BYTES
    assert ledger.peak_models <= MAX_LOADED
    assert ledger.evicted_in_use == []
    assert set(leases) == {0}
    served = results.count(True)
    others = {result for result in results if result is not True and not isinstance(result, asyncio.CancelledError)}
    assert others <= {"unavailable", "overloaded"}
    assert served > NUM_REQUESTS / 2
    assert ledger.num_loads > len(SIZES)
