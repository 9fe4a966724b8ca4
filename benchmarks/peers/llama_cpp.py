"""llama.cpp: its own server, compiled for this processor from the sources that llama-cpp-python carries.

The wheels at hand (llama-cpp-python, xllamacpp) are built for AVX2, without AVX-512, VNNI and bf16, which would not be
its best. Compiling takes 10 minutes on two cores, once, and needs cmake and a C++ compiler.

Run by `benchmarks.systems`: python -m benchmarks.peers.llama_cpp FILE THREADS
"""

import asyncio
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.http_client import Connection
from benchmarks.local_processes import free_port, wait_until_ready
from benchmarks.models import CACHE, ROOT, ModelShape, model_folder
from benchmarks.peers.environment import environment, run
from benchmarks.protocol import Generated, TokenCounter, die_with_parent, serve_generator

SOURCES = "llama_cpp_python-0.3.36"

# Its own names for what comes nearest to our precisions.
TYPES = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}

NUM_SLOTS = 64
CONTEXT = 16_384
CMAKE_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
]


def command(shape: ModelShape, precision: str, threads: int) -> list[str]:
    """The child's command line; compiles and converts first."""
    folder = model_folder(shape)
    binaries = environment("llama", ["gguf==0.19.0"])
    server_binary()
    converted = folder.with_name(f"{shape.name}-{TYPES[precision]}.gguf")
    if not converted.exists():
        partial = converted.with_suffix(".partial")
        convert = [str(binaries / "python"), "-m", "benchmarks.peers.llama_cpp_convert", str(folder), TYPES[precision]]
        run(["env", f"PYTHONPATH={ROOT}", *convert, str(partial)])
        partial.rename(converted)
    return [sys.executable, "-m", "benchmarks.peers.llama_cpp", str(converted), str(threads)]


def server_binary() -> Path:
    """`llama-server`, compiled if it is not there."""
    folder = CACHE / "sources" / SOURCES / "vendor" / "llama.cpp"
    binary = folder / "build" / "bin" / "llama-server"
    if binary.exists():
        return binary
    archive = CACHE / "sources" / f"{SOURCES}.tar.gz"
    if not archive.exists():
        requirement = SOURCES.replace("_", "-").replace("python-", "python==")
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d"]
        run([*download, str(archive.parent), requirement])
    if not folder.exists():
        with tarfile.open(archive) as sources:
            sources.extractall(archive.parent, filter="data")
    run(["cmake", "-S", str(folder), "-B", str(folder / "build"), *CMAKE_OPTIONS])
    run(["cmake", "--build", str(folder / "build"), "--parallel", str(os.cpu_count()), "--target", "llama-server"])
    return binary


class LlamaServer:
    """A `Generator` over HTTP streams of one server process."""

    def __init__(self, model: Path, threads: int) -> None:
        self._port = free_port()
        sizes = ["-np", str(NUM_SLOTS), "-c", str(CONTEXT), "--kv-unified", "-b", "2048", "-ub", "512"]
        serve = [str(server_binary()), "-m", str(model), "--host", "127.0.0.1", "--port", str(self._port)]
        thread_options = ["-t", str(threads), "-tb", str(threads), "--threads-http", str(NUM_SLOTS + 8)]
        subprocess.Popen([*serve, *sizes, *thread_options, "--no-cache-prompt"], preexec_fn=die_with_parent)
        wait_until_ready(f"http://127.0.0.1:{self._port}/health", limit_seconds=120)
        self.settings = f"{SOURCES}, llama-server, GGML_NATIVE, {threads} threads, {' '.join(sizes)}"

    def generate(self, prompts: Sequence[Sequence[int]], output_lengths: Sequence[int]) -> Generated:
        """All requests at once, each on a connection of its own."""
        return asyncio.run(self._generate(prompts, output_lengths))

    async def _generate(self, prompts: Sequence[Sequence[int]], output_lengths: Sequence[int]) -> Generated:
        counter = TokenCounter(len(prompts))

        async def one(request: int) -> None:
            body: dict[str, object] = {
                "prompt": list(prompts[request]),
                "n_predict": output_lengths[request],
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
                "stream": True,
            }
            num_tokens = 0
            async with Connection(self._port) as connection:
                async for event in connection.stream("/completion", body):
                    # A token that ends within a character has no event of its own; the last one says how many came.
                    num_new = event["tokens_predicted"] - num_tokens if event.get("stop") else 1
                    num_tokens += num_new
                    counter.add(request, num_new)

        await asyncio.gather(*(one(request) for request in range(len(prompts))))
        return counter.result()


if __name__ == "__main__":
    serve_generator(lambda: LlamaServer(Path(sys.argv[1]), int(sys.argv[2])))
