"""flashgen's fork server, or a process without one: from a request to the first token, with the models on disk.

Run by `benchmarks.bench_start`: python -m benchmarks.start_ours FOLDER prepare|forked|fresh THREADS
"prepare" writes what a worker that lives longer writes at its first load, and keeps the tokenizer.
"forked" stays, and answers `{"prompt": …}` by `{"seconds", "token"}` from a process that it forks for each request.
"fresh" reads one prompt from stdin, answers it in the same form, without "seconds", and ends.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.protocol import serve
from flashgen_runtime.config import (
    DeviceRequirements,
    EngineConfig,
    FolderSource,
    ModelConfig,
    ServerConfig,
    SwapConfig,
    WeightsConfig,
)
from flashgen_runtime.messages import GenerateRequest, GenerationParams, TextDelta
from flashgen_runtime.worker.ahead import work_ahead
from flashgen_runtime.worker.fork_server import reason_against_fork
from flashgen_runtime.worker.loading import CheckpointLibrary

# NOTE: nothing here may import torch before `work_ahead` does.


def first_token(server: ServerConfig, folder: Path, prompt: str) -> str:
    """Loads the model as a worker does, and answers a request with one token."""
    library = CheckpointLibrary(server, folder.parent)
    (config,) = server.models
    model = library.load(config, library.locate(config))
    params = GenerationParams(max_tokens=1, temperature=0.0)
    model.add(model.prepare(GenerateRequest(request_id="1", model=config.id, prompt=prompt, params=params)))
    while True:
        for reply in model.step():
            assert isinstance(reply, TextDelta), reply
            return reply.text


def prepare_all(folder: Path, threads: int) -> None:
    """Has everything in the store that starts look for there."""
    server = _server_config(folder, threads)
    work_ahead(server, folder.parent)
    # Deferred: it imports torch.
    from flashgen_runtime.engine.prepare import prepare
    from flashgen_runtime.loader.access import WeightAccess
    from flashgen_runtime.loader.tokenizer import load_tokenizer

    store = WeightAccess.of(server.weights).store
    prepare(folder, store)
    load_tokenizer(folder, vocab_size=1, store=store.root)


class ForkServer:
    """Has imported everything; its children live for one request."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = folder
        self._server = _server_config(folder, threads)
        work_ahead(self._server, folder.parent)
        self.settings = f"{threads} threads, weights mapped from the store"

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        reason = reason_against_fork()
        if reason is not None:
            raise RuntimeError(f"cannot fork: {reason}")
        reader, writer = os.pipe()
        began = time.perf_counter()
        if os.fork() == 0:
            os.write(writer, first_token(self._server, self._folder, request["prompt"]).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            token = pipe.read()
        seconds = time.perf_counter() - began
        _, status = os.wait()
        if status:
            raise RuntimeError(f"a child ended with {os.waitstatus_to_exitcode(status)}")
        return {"seconds": seconds, "token": token.decode(errors="replace")}


def _server_config(folder: Path, threads: int) -> ServerConfig:
    model = ModelConfig(
        id=folder.name,
        aliases=(),
        task="text-generation",
        source=FolderSource(folder=folder.name),
        dtype="auto",
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
    return ServerConfig(
        name="start",
        rpc_port=0,
        operations_port=0,
        threads=threads,
        models=(model,),
        memory_bytes=1 << 50,
        engine=EngineConfig(
            batching_mode="continuous",
            max_num_seqs=64,
            max_num_batched_tokens=512,
            max_wait_seconds=0.0,
            kv_cache_dtype="auto",
            block_size=32,
            kv_cache_bytes=2 << 30,
            prefix_caching=True,
            deterministic=False,
        ),
        weights=WeightsConfig(
            path=None, loader="auto", threads=4, host_cache_bytes=None, keep_in_ram=True, verify="size"
        ),
        swap=SwapConfig(
            max_loaded=1, evict="lru", idle_timeout_seconds=None, preload=(model.id,), load_timeout_seconds=600.0
        ),
        requirements=DeviceRequirements(gpus=0, gpu_memory_bytes=None, gpu_cuda_capability=None),
    )


def main() -> None:
    """One of the three."""
    folder, kind, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if kind == "prepare":
        prepare_all(folder, threads)
        return
    if kind == "fresh":
        prompt = json.loads(sys.stdin.readline())["prompt"]
        token = first_token(_server_config(folder, threads), folder, prompt)
        print(json.dumps({"token": token}), flush=True)
        os._exit(0)

    def start() -> tuple[str, Any]:
        server = ForkServer(folder, threads)
        return server.settings, server.answer

    serve(start)


if __name__ == "__main__":
    main()
