"""The child's side of `bench_load`: one load in a fresh process, timed. Needs torch and the standard library only.

Libraries are imported before the clock starts; it stops when a byte of every page of every tensor has been read.
"""

import hashlib
import json
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PAGE_BYTES = 4096
DIGEST_WORDS = 1 << 18


def report_load(load: Callable[[], Mapping[str, Any]], folder: Path) -> None:
    """Times a loader and prints one line of JSON: seconds, those spent in touching, CPU seconds, what the tensors are.

    Args:
        load: gives tensors by name.
        folder: of the checkpoint.
    """
    # Only the peers' environments have to have it.
    import torch

    _warm_memory(sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    tensors = load()
    loaded = time.perf_counter()
    touched = 0
    for tensor in tensors.values():
        touched += int(tensor.detach().reshape(-1).view(torch.uint8)[::PAGE_BYTES].sum())
    ended, cpu_seconds = time.perf_counter(), _cpu_seconds() - cpu_started
    measured = {"seconds": ended - started, "touch_seconds": ended - loaded, "cpu_seconds": cpu_seconds}
    print(json.dumps({**measured, "result": digest(tensors)}))


def report_first_token(first_token: Callable[[], int], folder: Path) -> None:
    """As `report_load`, until the first token of a greedy completion."""
    _warm_memory(sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    token = first_token()
    seconds, cpu_seconds = time.perf_counter() - started, _cpu_seconds() - cpu_started
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "result": str(token)}))


def digest(tensors: Mapping[str, Any]) -> str:
    """One number for names, dtypes, shapes and values."""
    import torch

    place = torch.arange(1, 2 * DIGEST_WORDS, 2)
    words = torch.empty(DIGEST_WORDS, dtype=torch.int64)
    products = torch.empty_like(words)
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        flat = tensor.contiguous().view(torch.uint8).reshape(-1)
        values = []
        # In pieces of the same small memory: fresh pages cost more than the sums.
        for start in range(0, len(flat), 8 * DIGEST_WORDS):
            piece = flat[start : start + 8 * DIGEST_WORDS]
            num_words = -(-len(piece) // 8)
            words[num_words - 1 : num_words] = 0
            words.view(torch.uint8)[: len(piece)] = piece
            torch.mul(words[:num_words], place[:num_words], out=products[:num_words])
            values.append(int(products[:num_words].sum()))
        total.update(f"{name} {list(tensor.shape)} {tensor.dtype} {values}\n".encode())
    return total.hexdigest()


def _warm_memory(num_bytes: int) -> None:
    """Touches and frees memory: on some virtual machines the first touch of a page costs more than reading it."""
    import torch

    # NOTE: no sum of it, which torch computes on a copy of eight times the size.
    torch.ones(num_bytes + (64 << 20), dtype=torch.uint8)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
