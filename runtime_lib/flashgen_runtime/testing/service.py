"""A whole service in one process: real workers with fakes in the place of models, joined by the memory transport."""

import asyncio
from pathlib import Path

from flashgen_runtime.config import ServerConfig, load_config
from flashgen_runtime.server.pool import WorkerPool
from flashgen_runtime.server.service import Service
from flashgen_runtime.testing.models import fake_manager
from flashgen_runtime.transport.memory import MemoryLine
from flashgen_runtime.worker.worker import Worker


def fake_service(config_path: Path, *, delay_seconds: float = 0.0) -> Service:
    """A service that answers by the fakes' laws; `delay_seconds` is the duration of an engine step.

    Its workers run from `start` to `close`, which an application's lifespan calls. Raises `ConfigError`.
    """
    config = load_config(config_path)
    return Service(config, connect=lambda server: FakePool(server, delay_seconds=delay_seconds))


class FakePool(WorkerPool):
    """One worker of a server, in this process."""

    def __init__(self, server: ServerConfig, *, delay_seconds: float = 0.0) -> None:
        self._line = MemoryLine(server.name)
        super().__init__([self._line.connect()])
        self._manager = fake_manager(server, delay_seconds=delay_seconds)
        self._worker: Worker | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the worker and waits until it is ready."""
        self._worker = Worker(self._line.bind(), self._manager)
        self._running = asyncio.create_task(self._worker.run())
        changed = asyncio.Event()
        self.members[0].connection.on_change(changed.set)
        await super().start()
        while not self.members[0].is_ready:
            changed.clear()
            await changed.wait()

    async def close(self) -> None:
        await super().close()
        if self._worker is not None and self._running is not None:
            await self._worker.close()
            await self._running
