"""A model with a simple law instead of weights: its logits are a function of all tokens that it finds in its cache.

Where others keep keys and values it keeps a number that depends on a token and on the number before it, so a block that
is shared, copied or written wrongly gives other logits than the tokens themselves do.
"""

from collections.abc import Sequence

import numpy as np
import torch

from flashgen_runtime.engine.batch import Batch
from flashgen_runtime.engine.causal_model import ModelDescription
from flashgen_runtime.engine.kv_cache import LayerShape
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.scheduler import Chunk

VOCAB_SIZE = 24


def logits_of(token_ids: Sequence[int]) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """The law: [VOCAB_SIZE] pseudo-random numbers that depend on every token and its place."""
    values: list[int] = []
    for token_id in token_ids:
        values.append(_next_value(values[-1] if values else 0, token_id))
    return _logits_of_values(values)


def greedy_by_law(prompt_ids: Sequence[int], *, max_tokens: int, eos_ids: frozenset[int] = frozenset()) -> list[int]:
    """The completion that a request must get, whatever it shares its batches and blocks with."""
    token_ids = list(prompt_ids)
    while len(token_ids) < len(prompt_ids) + max_tokens:
        token_ids.append(int(logits_of(token_ids).argmax()))
        if token_ids[-1] in eos_ids:
            break
    return token_ids[len(prompt_ids) :]


class LawModel:
    """Implements `CausalModel`; counts tokens and refuses a step that writes a slot twice."""

    description = ModelDescription(
        path="native",
        path_reason="",
        dtype="float32",
        quantization="",
        kv_cache_dtype="float32",
        kernels="torch",
        is_batch_invariant=True,
    )
    vocab_size = VOCAB_SIZE
    device = torch.device("cpu")
    layer_shapes = (LayerShape(1, 1, 1),)
    block_bytes_per_token = 8

    def __init__(self, *, can_chunk: bool = True, can_share_blocks: bool = True) -> None:
        self.can_chunk = can_chunk
        self.can_share_blocks = can_share_blocks
        self.num_computed_tokens = 0
        self.forgotten: list[Request] = []
        self.is_closed = False

    def allocate_cache(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._cache = np.full((num_blocks, block_size), -1, dtype=np.int64)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            self._cache[target] = self._cache[source]

    def compute(self, chunks: Sequence[Chunk]) -> list["np.ndarray[tuple[int], np.dtype[np.float32]]"]:
        """Stores all chunks' tokens, then gives the logits at the ends of requests and behind each proposal."""
        self._written: set[int] = set()
        for request, num_tokens in chunks:
            self._store(request, range(request.num_computed_tokens, request.num_computed_tokens + num_tokens))
        self.num_computed_tokens += len(self._written)
        return [
            _logits_of_values(self._stored(chunk.request)[: len(chunk.request.token_ids) + number])
            for chunk in chunks
            if chunk.reaches_end
            for number in range(1 + len(chunk.request.proposed_ids))
        ]

    def forward(self, batch: Batch) -> torch.Tensor:
        rows = self.compute(batch.chunks)
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, VOCAB_SIZE)

    def forget(self, request: Request) -> None:
        self.forgotten.append(request)

    def close(self) -> None:
        self.is_closed = True

    def _store(self, request: Request, positions: range) -> None:
        flat = self._cache.reshape(-1)
        for position in positions:
            before = flat[self._slot(request, position - 1)] if position else 0
            slot = self._slot(request, position)
            assert slot not in self._written, "two tokens of a step have the same slot"
            self._written.add(slot)
            flat[slot] = _next_value(int(before), (request.token_ids + request.proposed_ids)[position])

    def _stored(self, request: Request) -> list[int]:
        """What the cache holds in a request's blocks."""
        blocks = np.frombuffer(request.block_table, dtype=np.int64)
        stored: list[int] = self._cache[blocks].ravel().tolist()
        return stored[: len(request.token_ids) + len(request.proposed_ids)]

    def _slot(self, request: Request, position: int) -> int:
        return request.block_table[position // self._block_size] * self._block_size + position % self._block_size


def _next_value(before: int, token_id: int) -> int:
    return (before * 1_000_003 + token_id + 1) % (1 << 40)


def _logits_of_values(values: Sequence[int]) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    seed = hash(tuple(values)) & 0xFFFFFFFF
    return np.random.RandomState(seed).standard_normal(VOCAB_SIZE).astype(np.float32)
