"""The same traffic by hand: models from `from_pretrained`, the least recently used one deleted before the next.

Run by `benchmarks.bench_swap`: python -m benchmarks.swap_transformers FOLDER NUM_MODELS NUM_LOADED
Requests are served in order, one at a time: what a script around transformers does. Answers as `swap_ours`.
"""

import asyncio
import ctypes
import gc
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

from benchmarks.protocol import serve
from benchmarks.resident_memory import resident_bytes, watched_memory
from benchmarks.swap_traffic import PROMPT, SAMPLE_SECONDS, Arrival, play
from benchmarks.systems import THREADS


class SwappingScript:
    """Holds at most so many models."""

    def __init__(self, folder: Path, num_models: int, num_loaded: int) -> None:
        torch.set_num_threads(THREADS)
        self._folder = folder
        self._num_loaded = num_loaded
        self._loaded: OrderedDict[int, Any] = OrderedDict()
        self.settings = f"transformers {__version__}, {num_loaded} of {num_models} models loaded, {THREADS} threads"
        # Libraries are imported, files in the page cache.
        for model in range(num_models):
            self._first_token(model, tokens=2)

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        self._loaded.clear()
        _free()
        base = resident_bytes()
        turn = asyncio.Lock()

        async def ask(model: int) -> float:
            began = time.perf_counter()
            async with turn:
                first = await asyncio.to_thread(self._first_token, model, tokens=request["tokens"])
            return first - began

        arrivals = [Arrival(*arrival) for arrival in request["arrivals"]]
        with watched_memory(SAMPLE_SECONDS) as peak:
            ttft = asyncio.run(play(arrivals, ask))
        return {"ttft": ttft, "peak_bytes": peak.num_bytes - base, "budget_bytes": 0}

    @torch.inference_mode()
    def _first_token(self, model: int, *, tokens: int) -> float:
        """When the first token was there; the others are generated too."""
        module, tokenizer = self._load(model)
        ids = tokenizer(PROMPT, return_tensors="pt").input_ids
        output = module(ids, use_cache=True)
        next_ids = output.logits[:, -1:].argmax(-1)
        first = time.perf_counter()
        for _ in range(tokens - 1):
            output = module(next_ids, past_key_values=output.past_key_values, use_cache=True)
            next_ids = output.logits[:, -1:].argmax(-1)
        return first

    def _load(self, model: int) -> Any:
        if model in self._loaded:
            self._loaded.move_to_end(model)
            return self._loaded[model]
        while len(self._loaded) >= self._num_loaded:
            self._loaded.popitem(last=False)
            _free()
        folder = self._folder / f"m{model}"
        module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        self._loaded[model] = module, AutoTokenizer.from_pretrained(folder)
        return self._loaded[model]


def _free() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":

    def start() -> tuple[str, Any]:
        script = SwappingScript(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
        return script.settings, script.answer

    serve(start)
