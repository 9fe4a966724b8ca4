"""Workers, connections and configurations for the tests of the runtime."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Literal, NamedTuple

import msgspec
import yaml

from flashgen_runtime.config import (
    ApiConfig,
    DeviceRequirements,
    EngineConfig,
    FolderSource,
    ModelConfig,
    ServerConfig,
    ServiceConfig,
    SwapConfig,
    Task,
    WeightsConfig,
)
from flashgen_runtime.messages import GenerateRequest, GenerationParams, Reply, TextDelta, WorkerStatus, WorkRequest
from flashgen_runtime.testing import FakeLibrary
from flashgen_runtime.transport.base import WorkerConnection
from flashgen_runtime.transport.memory import MemoryLine
from flashgen_runtime.worker import ModelManager, Worker

# Generous: other tests may have the machine.
TIMEOUT_SECONDS = 20.0


class RunningWorker(NamedTuple):
    """A worker and an API server's connection to it."""

    worker: Worker
    connection: WorkerConnection
    line: MemoryLine
    run: "asyncio.Task[None]"


def model_config(id: str = "fake", *, aliases: tuple[str, ...] = (), task: Task = "text-generation") -> ModelConfig:  # noqa: A002
    """A model of which only names and task matter."""
    return ModelConfig(
        id=id,
        aliases=aliases,
        task=task,
        source=FolderSource(folder=id),
        dtype="float32",
        quantization=None,
        device="cpu",
        max_context=None,
        chat_template=None,
        generation_params=GenerationParams(),
        prefetch=(),
        speculative=None,
        weight_bytes=None,
        sequence_kv_bytes=None,
    )


WEIGHTS = WeightsConfig(path=None, loader="auto", threads=2, host_cache_bytes=None, keep_in_ram=True, verify="size")


def swap_config(
    *,
    max_loaded: int = 1,
    evict: Literal["lru", "lfu", "never"] = "lru",
    idle_timeout_seconds: float | None = None,
    preload: tuple[str, ...] = (),
    load_timeout_seconds: float = TIMEOUT_SECONDS,
) -> SwapConfig:
    """Which models are loaded; by default one at a time."""
    return SwapConfig(
        max_loaded=max_loaded,
        evict=evict,
        idle_timeout_seconds=idle_timeout_seconds,
        preload=preload,
        load_timeout_seconds=load_timeout_seconds,
    )


def server_config(
    *models: ModelConfig, name: str = "fake", swap: SwapConfig | None = None, memory_bytes: int = 1 << 40
) -> ServerConfig:
    """A server of these models, or of one; all of them are loaded at start."""
    models = models or (model_config(),)
    preload = tuple(model.id for model in models)
    return ServerConfig(
        name=name,
        rpc_port=6500,
        operations_port=9500,
        threads=1,
        models=models,
        memory_bytes=memory_bytes,
        engine=EngineConfig(
            batching_mode="continuous",
            max_num_seqs=8,
            max_num_batched_tokens=512,
            max_wait_seconds=0,
            kv_cache_dtype="auto",
            block_size=16,
            kv_cache_bytes=1 << 20,
            prefix_caching=True,
            deterministic=False,
        ),
        weights=WEIGHTS,
        swap=swap or swap_config(max_loaded=len(models), preload=preload),
        requirements=DeviceRequirements(gpus=0, gpu_memory_bytes=None, gpu_cuda_capability=None),
    )


def manager_with(load: Callable[[ModelConfig], Any], *models: ModelConfig) -> ModelManager:
    """A manager of preloaded models, or of one, that `load` makes."""
    server = server_config(*models)
    return ModelManager(server, FakeLibrary(server, load=load))


def generate(request_id: str, prompt: str = "abc", *, model: str = "fake", max_tokens: int = 5) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id, model=model, prompt=prompt, params=GenerationParams(max_tokens=max_tokens)
    )


@asynccontextmanager
async def running_worker(
    manager: ModelManager, *, drain_seconds: float = TIMEOUT_SECONDS
) -> AsyncIterator[RunningWorker]:
    """A worker over the memory transport, until the end of the context; it may still be loading."""
    line = MemoryLine()
    worker = Worker(line.bind(), manager, drain_seconds=drain_seconds)
    connection = line.connect()
    await connection.start()
    run = asyncio.create_task(worker.run())
    try:
        yield RunningWorker(worker, connection, line, run)
    finally:
        await connection.close()
        await worker.close()
        await asyncio.wait([run])


async def status_where(
    connection: WorkerConnection,
    holds: Callable[[WorkerStatus | None], bool],
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> WorkerStatus | None:
    """Waits until the connection's status fulfils a condition."""
    changed = asyncio.Event()
    connection.on_change(changed.set)
    async with asyncio.timeout(timeout_seconds):
        while not holds(connection.status):
            changed.clear()
            await changed.wait()
    return connection.status


async def in_state(
    connection: WorkerConnection, state: str | None, *, timeout_seconds: float = TIMEOUT_SECONDS
) -> WorkerStatus | None:
    """Waits until the worker is in a state; `None` stands for no connection."""
    return await status_where(
        connection,
        lambda status: (status.state if status else None) == state,
        timeout_seconds=timeout_seconds,
    )


async def replies_of(connection: WorkerConnection, request: WorkRequest) -> list[Reply]:
    """All replies to one request."""
    async with asyncio.timeout(TIMEOUT_SECONDS), aclosing(connection.stream(request)) as stream:
        return [reply async for reply in stream]


def text_of(replies: list[Reply]) -> str:
    """The whole text of an answer."""
    return "".join(reply.text for reply in replies if isinstance(reply, TextDelta))


def service_yaml(*servers: ServerConfig) -> str:
    """A configuration file of these servers, or of one with a fake model, and one api for each."""
    servers = servers or (server_config(),)
    apis = tuple(
        ApiConfig(
            name=f"{server.name}_api",
            path=f"/{server.name}",
            method="POST",
            protocol="openai.completions",
            servers=(server.name,),
        )
        for server in servers
    )
    config = ServiceConfig(version=1, name="tests", apis=apis, servers=servers)
    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)
