"""One step's tokens as one flat row without padding, and where each sequence's keys and values lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flashgen_runtime.engine.scheduler import Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`B` sequences, `T` tokens; sequences with one new token come first, ordered by their length.

    Tensors are int64 and lie on the model's device; what decides over shapes lies on the host beside them.
    """

    # In the order of the sequences.
    chunks: list[Chunk]

    # [T]
    input_ids: torch.Tensor
    positions: torch.Tensor

    # [T]: where the KV cache takes each token.
    slot_mapping: torch.Tensor

    # [R]: the last tokens of the chunks that reach their request's end.
    sample_rows: torch.Tensor

    # [B]: tokens of each sequence that are in the KV cache after this step.
    kv_lens: torch.Tensor

    # [B, N], padded with block 0.
    block_tables: torch.Tensor

    # Sequence i has the tokens cu_seqlens[i] : cu_seqlens[i + 1].
    cu_seqlens: list[int]
    kv_lens_host: list[int]

    # The first `num_decodes` sequences have one token each.
    num_decodes: int
    block_size: int

    @property
    def sampled_chunks(self) -> list[Chunk]:
        """The chunks of `sample_rows`."""
        return [chunk for chunk in self.chunks if chunk.reaches_end]


def build_batch(chunks: Sequence[Chunk], *, block_size: int, device: torch.device) -> Batch:
    """Flattens chunks; everything goes to the device in one transfer."""
    ordered = sorted(chunks, key=_order)
    query_lens = np.array([chunk.num_tokens for chunk in ordered])
    num_computed = np.array([chunk.request.num_computed_tokens for chunk in ordered])
    kv_lens = num_computed + query_lens
    cu_seqlens = np.concatenate(([0], np.cumsum(query_lens)))
    block_tables = _padded_block_tables(ordered)

    sequence_of_token = np.repeat(np.arange(len(ordered)), query_lens)
    positions = np.arange(cu_seqlens[-1]) + (num_computed - cu_seqlens[:-1])[sequence_of_token]
    slots = block_tables[sequence_of_token, positions // block_size] * block_size + positions % block_size
    sample_rows = cu_seqlens[1:][[chunk.reaches_end for chunk in ordered]] - 1

    parts = (_input_ids(ordered), positions, slots, sample_rows, kv_lens, block_tables.ravel())
    packed = torch.from_numpy(np.concatenate(parts)).to(device)
    on_device = torch.split(packed, [len(part) for part in parts])
    return Batch(
        chunks=ordered,
        input_ids=on_device[0],
        positions=on_device[1],
        slot_mapping=on_device[2],
        sample_rows=on_device[3],
        kv_lens=on_device[4],
        block_tables=on_device[5].view(block_tables.shape),
        cu_seqlens=cu_seqlens.tolist(),
        kv_lens_host=kv_lens.tolist(),
        num_decodes=int(np.count_nonzero(query_lens == 1)),
        block_size=block_size,
    )


def _order(chunk: Chunk) -> tuple[bool, int]:
    """Single tokens first, the shortest sequence before the longer ones, so that neighbours can be padded together."""
    is_prefill = chunk.num_tokens > 1
    return is_prefill, 0 if is_prefill else chunk.request.num_computed_tokens


def _input_ids(chunks: Sequence[Chunk]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    ids: list[int] = []
    for request, num_tokens in chunks:
        ids += request.token_ids[request.num_computed_tokens : request.num_computed_tokens + num_tokens]
    return np.array(ids, dtype=np.int64)


def _padded_block_tables(chunks: Sequence[Chunk]) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    """[B, N] with N the longest table."""
    tables = [np.frombuffer(chunk.request.block_table, dtype=np.int64) for chunk in chunks]
    padded = np.zeros((len(tables), max(map(len, tables))), dtype=np.int64)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    return padded
