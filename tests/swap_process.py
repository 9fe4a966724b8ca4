"""A process of its own that serves random traffic over many real models and watches its memory.

Run: python -m tests.swap_process FOLDER. Writes the models into the folder, says what it saw as one line of JSON.
"""

import asyncio
import json
import os
import random
import sys
from pathlib import Path

import torch
from msgspec.structs import replace

from benchmarks.resident_memory import resident_bytes, watched_memory
from benchmarks.swap_models import LlamaShape, write_llama
from flashgen_runtime.config import ServerConfig
from flashgen_runtime.freed_memory import use_one_arena
from flashgen_runtime.messages import RequestFailure
from flashgen_runtime.worker import ModelManager
from flashgen_runtime.worker.loading import CheckpointLibrary
from tests.runtime_workers import (
    RunningWorker,
    generate,
    in_state,
    model_config,
    replies_of,
    running_worker,
    server_config,
    swap_config,
)

VOCAB_SIZE = 4096
# Layers of each model, which take 1.3 MB each beside 8 MB of embeddings and head.
LAYERS = {"a": 4, "b": 6, "c": 8, "d": 10, "e": 12, "f": 14}
NUM_REQUESTS = 80
MAX_LOADED = 3


def main(folder: Path) -> dict[str, int]:
    os.environ["FLASHGEN_STORE"] = str(folder / "store")
    # As every worker does.
    use_one_arena()
    for seed, (name, num_layers) in enumerate(LAYERS.items()):
        write_llama(folder / name, LlamaShape(num_layers, 256, 512, VOCAB_SIZE, torch.float32), seed=seed)
    return asyncio.run(measure(folder))


async def measure(folder: Path) -> dict[str, int]:
    configs = tuple(replace(model_config(name), max_context=256) for name in LAYERS)
    server = server_config(*configs, swap=swap_config(max_loaded=MAX_LOADED))
    server = replace(server, engine=replace(server.engine, max_num_batched_tokens=64, block_size=32))
    library = CheckpointLibrary(server, folder)
    sizes = [library.measure(config, library.locate(config)).total_bytes for config in configs]
    # Room for the largest and a little: often two fit, sometimes three.
    budget = max(sizes) + min(sizes) + 1
    server = replace(server, memory_bytes=budget)

    await warm_up(server, folder)
    manager = ModelManager(server, CheckpointLibrary(server, folder))
    async with running_worker(manager) as running:
        await in_state(running.connection, "ready")
        await unload_all(manager)
        base = resident_bytes()
        with watched_memory() as peak:
            num_failed = await traffic(running)
        await unload_all(manager)
        after = resident_bytes()
    return {
        "budget": budget,
        "all_models": sum(sizes),
        "peak": peak.num_bytes - base,
        "left": after - base,
        "failed": num_failed,
    }


async def warm_up(server: ServerConfig, folder: Path) -> None:
    """Imports libraries and starts threads; the files of all models but one are prepared under traffic."""
    manager = ModelManager(server, CheckpointLibrary(server, folder))
    async with running_worker(manager) as running:
        await in_state(running.connection, "ready")
        for number in range(2):
            await replies_of(running.connection, generate(str(number), model="a"))
            await manager.unload("a")


async def traffic(running: RunningWorker) -> int:
    """Requests that come at random; how many failed."""
    rng = random.Random(0)

    async def ask(number: int) -> bool:
        await asyncio.sleep(rng.uniform(0, 4))
        request = generate(str(number), model=rng.choice(list(LAYERS)), max_tokens=rng.randint(1, 20))
        return isinstance((await replies_of(running.connection, request))[-1], RequestFailure)

    return sum(await asyncio.gather(*map(ask, range(NUM_REQUESTS))))


async def unload_all(manager: ModelManager) -> None:
    for name in LAYERS:
        await manager.unload(name)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
