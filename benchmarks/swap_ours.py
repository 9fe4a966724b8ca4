"""flashgen's worker with many models: one process, requests over the memory transport.

Run by `benchmarks.bench_swap`: python -m benchmarks.swap_ours FOLDER NUM_MODELS NUM_LOADED
Answers `{"arrivals": [[seconds, model], …], "tokens": N}` by `{"ttft": […], "peak_bytes", "budget_bytes"}`.
"""

import asyncio
import os
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from benchmarks.ours import SIZES, model_config
from benchmarks.protocol import serve
from benchmarks.resident_memory import resident_bytes, watched_memory
from benchmarks.swap_traffic import PROMPT, SAMPLE_SECONDS, Arrival, play
from benchmarks.systems import THREADS
from flashgen_runtime.config import DeviceRequirements, ServerConfig, SwapConfig, WeightsConfig
from flashgen_runtime.freed_memory import use_one_arena
from flashgen_runtime.messages import GenerateRequest, GenerationParams, RequestFailure
from flashgen_runtime.transport.base import WorkerConnection
from flashgen_runtime.transport.memory import MemoryLine
from flashgen_runtime.worker import ModelManager, Worker
from flashgen_runtime.worker.loading import CheckpointLibrary

KV_CACHE_BYTES = 8 << 20
LOAD_TIMEOUT_SECONDS = 600.0


class SwappingWorker:
    """A worker, started and warm; nothing is loaded but what stays loaded."""

    def __init__(self, folder: Path, num_models: int, num_loaded: int) -> None:
        os.environ["FLASHGEN_STORE"] = str(folder / "store")
        # As every worker does.
        use_one_arena()
        self._folder = folder
        self._names = [f"m{number}" for number in range(num_models)]
        self._server = self._sized(_server_config(self._names, folder, num_loaded), num_loaded)
        self._num_requests = 0
        self._loop = asyncio.new_event_loop()
        self._connection, self._manager, self._running = self._loop.run_until_complete(self._start())
        self.settings = (
            f"{num_loaded} of {num_models} models loaded, {self._server.memory_bytes} bytes, {THREADS} threads"
        )

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        arrivals = [Arrival(*arrival) for arrival in request["arrivals"]]
        ttft, peak = self._loop.run_until_complete(self._measure(arrivals, request["tokens"]))
        return {"ttft": ttft, "peak_bytes": peak, "budget_bytes": self._server.memory_bytes}

    async def _start(self) -> tuple[WorkerConnection, ModelManager, "asyncio.Task[None]"]:
        manager = ModelManager(self._server, CheckpointLibrary(self._server, self._folder))
        line = MemoryLine()
        worker = Worker(line.bind(), manager)
        connection = line.connect()
        await connection.start()
        running = asyncio.create_task(worker.run())
        while worker.state != "ready":
            if running.done():
                running.result()
            await asyncio.sleep(0.01)
        # Weights are prepared, libraries imported, threads started.
        for _ in range(2):
            for model in range(len(self._names)):
                await self._ask(connection, model, tokens=2)
        return connection, manager, running

    async def _measure(self, arrivals: list[Arrival], tokens: int) -> tuple[list[float], int]:
        loaded = [status.id for status in self._manager.statuses if status.residency == "loaded"]
        for name in loaded:
            await self._manager.unload(name)
        base = resident_bytes()
        if len(loaded) == len(self._names):
            for name in loaded:
                await self._manager.load(name)
        with watched_memory(SAMPLE_SECONDS) as peak:
            ttft = await play(arrivals, lambda model: self._ask(self._connection, model, tokens=tokens))
        return ttft, peak.num_bytes - base

    async def _ask(self, connection: WorkerConnection, model: int, *, tokens: int) -> float:
        self._num_requests += 1
        params = GenerationParams(max_tokens=tokens, temperature=0.0)
        request = GenerateRequest(
            request_id=str(self._num_requests), model=self._names[model], prompt=PROMPT, params=params
        )
        began = time.perf_counter()
        first: float | None = None
        async with aclosing(connection.stream(request)) as replies:
            async for reply in replies:
                if isinstance(reply, RequestFailure):
                    raise RuntimeError(reply.message)
                if first is None:
                    first = time.perf_counter() - began
        assert first is not None, "a request has replies"
        return first

    def _sized(self, server: ServerConfig, num_loaded: int) -> ServerConfig:
        """With memory for so many of its models."""
        library = CheckpointLibrary(server, self._folder)
        sizes = [library.measure(config, library.locate(config)).total_bytes for config in server.models]
        return replace(server, memory_bytes=sum(sorted(sizes)[-num_loaded:]))


def _server_config(names: list[str], folder: Path, num_loaded: int) -> ServerConfig:
    return ServerConfig(
        name="swap",
        rpc_port=0,
        operations_port=0,
        threads=THREADS,
        models=tuple(replace(model_config(folder / name, "bf16"), dtype="auto") for name in names),
        memory_bytes=1 << 50,
        engine=replace(SIZES, kv_cache_bytes=KV_CACHE_BYTES, max_num_seqs=8, max_num_batched_tokens=128),
        weights=WeightsConfig(
            path=None, loader="auto", threads=4, host_cache_bytes=None, keep_in_ram=True, verify="size"
        ),
        swap=SwapConfig(
            max_loaded=num_loaded,
            evict="lru",
            idle_timeout_seconds=None,
            preload=(),
            load_timeout_seconds=LOAD_TIMEOUT_SECONDS,
        ),
        requirements=DeviceRequirements(gpus=0, gpu_memory_bytes=None, gpu_cuda_capability=None),
    )


if __name__ == "__main__":

    def start() -> tuple[str, Any]:
        worker = SwappingWorker(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
        return worker.settings, worker.answer

    serve(start)
