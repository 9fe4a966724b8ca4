"""The worker's probes."""

import asyncio
import threading
from pathlib import Path

from flashgen_runtime.testing import FakeLibrary
from flashgen_runtime.worker.health import WorkerProbes
from tests.runtime_workers import TIMEOUT_SECONDS, in_state, manager_with, running_worker, server_config


class FakeLoop:
    """What the probes ask of an engine loop."""

    is_alive = True
    seconds_without_progress = 0.0


class FakeWorker:
    """What the probes ask of a worker."""

    def __init__(self, state):
        self.state = state
        self.engine_loop = FakeLoop()


def verdicts(state):
    probes = WorkerProbes(FakeWorker(state))
    return {"livez": probes.livez().ok, "startupz": probes.startupz().ok, "readyz": probes.readyz().ok}


def test_probes_differ_by_state():
    """Loading is alive and not started; draining is started and not ready; a failed worker is never ready."""
    assert verdicts("starting") == {"livez": True, "startupz": False, "readyz": False}
    assert verdicts("loading") == {"livez": True, "startupz": False, "readyz": False}
    assert verdicts("ready") == {"livez": True, "startupz": True, "readyz": True}
    assert verdicts("draining") == {"livez": True, "startupz": True, "readyz": False}
    assert verdicts("failed") == {"livez": True, "startupz": False, "readyz": False}


def test_a_worker_without_progress_is_not_alive():
    """Work and no step for long means that only a restart helps."""
    worker = FakeWorker("ready")
    probes = WorkerProbes(worker, stuck_after_seconds=10)

    worker.engine_loop.seconds_without_progress = 10.0
    before = probes.livez()
    worker.engine_loop.seconds_without_progress = 10.1
    after = probes.livez()

    assert (before.ok, after.ok) == (True, False)
    assert after.body["seconds_without_progress"] == 10.1


def test_a_worker_without_its_thread_is_not_alive():
    """An engine thread that is gone serves nobody."""
    worker = FakeWorker("ready")

    worker.engine_loop.is_alive = False

    assert not WorkerProbes(worker).livez().ok


def test_a_worker_that_is_not_ready_says_when_to_come_back():
    """The answer of `/readyz` carries Retry-After."""
    assert WorkerProbes(FakeWorker("loading")).readyz().retry_after_seconds == 5
    assert WorkerProbes(FakeWorker("ready")).readyz().retry_after_seconds is None


def test_probes_follow_a_real_worker():
    """From loading over ready to draining."""

    async def main():
        may_load = threading.Event()
        fakes = FakeLibrary(server_config())

        def load(config):
            may_load.wait(TIMEOUT_SECONDS)
            return fakes.load(config, Path())

        async with running_worker(manager_with(load)) as running:
            probes = WorkerProbes(running.worker)
            await in_state(running.connection, "loading")
            loading = (probes.livez().ok, probes.startupz().ok, probes.readyz().ok)
            may_load.set()
            await in_state(running.connection, "ready")
            ready = (probes.livez().ok, probes.startupz().ok, probes.readyz().ok)
            await running.worker.drain()
            draining = (probes.livez().ok, probes.startupz().ok, probes.readyz().ok)

        assert loading == (True, False, False)
        assert ready == (True, True, True)
        assert draining == (True, True, False)

    asyncio.run(main())
