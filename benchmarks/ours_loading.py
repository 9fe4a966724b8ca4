"""Our reader and our streamed start, as `benchmarks.load_run` times them, and the rate of the bare disk.

Run: python -m benchmarks.ours_loading map|arena|disk|"first token" FOLDER [STORE]
"""

import mmap
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.load_run import report_first_token, report_load
from benchmarks.ours import SIZES, model_config
from benchmarks.peers.loaders import PROMPT, TINY
from flashgen_runtime.config import EngineConfig
from flashgen_runtime.engine.base import EngineRequest
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.paths import load_causal_model
from flashgen_runtime.engine.prepare import prepare
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.loader import load_dict
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.store import Store

DISK_THREADS = 4
DISK_BLOCK_BYTES = 8 << 20


def command(what: str, folder: Path, store: Path) -> list[str]:
    """The command line of one of ours."""
    return [sys.executable, "-m", "benchmarks.ours_loading", what, str(folder), str(store)]


def prepare_for_first_token(folder: Path, store: Path) -> Path:
    """Makes the prepared file that `first_token` maps."""
    return prepare(folder, store=Store(store), dtype="auto", quantization=None, layout="panels").path


def first_token(folder: Path, store: Path) -> Callable[[], int]:
    """The engine as a worker makes it: its first step runs while the weights arrive."""
    # Whatever is imported late has been, as in a worker that has loaded another model before.
    _engine(folder.with_name(TINY), store)

    def run() -> int:
        engine = _engine(folder, store)
        engine.add_request(EngineRequest("0", PROMPT, SamplingParams(max_tokens=1, temperature=0.0)))
        while engine.has_work:
            for output in engine.step():
                return int(output.text)
        raise RuntimeError("no token came")

    return run


class _NumberTokenizer:
    """Texts are token ids."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        del add_special_tokens
        return [int(word) for word in text.split()]

    def decode(self, token_ids: Any) -> str:
        return "".join(f" {token_id}" for token_id in token_ids)


def _engine(folder: Path, store: Path, sizes: EngineConfig = SIZES) -> LLMEngine:
    access = WeightAccess(store=Store(store))
    model = load_causal_model(folder, model_config(folder, "bf16"), sizes, access=access)
    tokenizer: Any = _NumberTokenizer(model.vocab_size)
    return LLMEngine(model, tokenizer, sizes=sizes, max_context=512)


def disk(folder: Path) -> Callable[[], dict[str, torch.Tensor]]:
    """All files past the page cache into memory that is there already: nothing that loads them can be faster."""
    files = sorted(folder.glob("*.safetensors"))
    blocks = [(file, start) for file in files for start in range(0, file.stat().st_size, DISK_BLOCK_BYTES)]
    memory = mmap.mmap(-1, DISK_THREADS * DISK_BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    torch.frombuffer(memory, dtype=torch.uint8).fill_(1)
    descriptors = {file: os.open(file, os.O_RDONLY | os.O_DIRECT) for file in files}

    def read(number: int) -> None:
        buffer = memoryview(memory)[number * DISK_BLOCK_BYTES : (number + 1) * DISK_BLOCK_BYTES]
        for file, start in blocks[number::DISK_THREADS]:
            os.preadv(descriptors[file], [buffer], start)

    def run() -> dict[str, torch.Tensor]:
        with ThreadPoolExecutor(DISK_THREADS) as pool:
            list(pool.map(read, range(DISK_THREADS)))
        return {}

    return run


if __name__ == "__main__":
    what, folder, store = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "first token":
        report_first_token(first_token(folder, store), folder)
    elif what == "disk":
        report_load(disk(folder), folder)
    else:
        mode: Any = what
        report_load(lambda: load_dict(folder, mode=mode), folder)
