"""One step's tokens as one flat row without padding, and where each sequence's keys and values lie."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashgen_runtime.engine.scheduler import Chunk
from flashgen_runtime.kernels.library import CBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatTokens:
    """`B` sequences, `T` tokens: what a forward pass reads. Tensors are int64 and lie on the model's device."""

    # [T]
    input_ids: torch.Tensor
    positions: torch.Tensor

    # [T]: where the KV cache takes each token.
    slot_mapping: torch.Tensor

    # [R]: the rows whose results are wanted.
    sample_rows: torch.Tensor

    # [B]: tokens of each sequence that are in the KV cache after this step.
    kv_lens: torch.Tensor

    # [B + 1]: sequence i has the tokens starts[i] : starts[i + 1].
    starts: torch.Tensor

    # [B, N], padded with block 0.
    block_tables: torch.Tensor
    block_size: int

    # The same for the kernels, on the CPU; valid while this object lives.
    c_struct: CBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(FlatTokens):
    """Chunks of requests, flattened. Single tokens come first, ordered by the length of their sequences.

    `sample_rows` are the last tokens of the chunks that reach their request's end, each followed by its proposals.
    """

    # In the order of the sequences.
    chunks: list[Chunk]

    # `starts` and `kv_lens` on the host.
    cu_seqlens: list[int]
    kv_lens_host: list[int]

    # The first `num_decodes` sequences have one token each.
    num_decodes: int

    @property
    def sampled_chunks(self) -> list[Chunk]:
        """The chunks of `sample_rows`."""
        return [chunk for chunk in self.chunks if chunk.reaches_end]


def build_batch(chunks: Sequence[Chunk], *, block_size: int, device: torch.device) -> Batch:
    """Flattens chunks. On lists, which takes half the time of numpy where most chunks are single tokens."""
    ordered = sorted(chunks, key=_order)
    input_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sample_rows: list[int] = []
    kv_lens: list[int] = []
    starts = [0]
    for request, num_tokens in ordered:
        first = request.num_computed_tokens
        last = first + num_tokens
        input_ids += request.token_ids[first:last]
        input_ids += request.proposed_ids
        positions += range(first, last)
        _add_slots(slots, request.block_table, first, last, block_size=block_size)
        kv_lens.append(last)
        starts.append(len(input_ids))
        # As `Chunk.reaches_end`.
        if last == len(request.token_ids) + len(request.proposed_ids):
            sample_rows += range(len(input_ids) - 1 - len(request.proposed_ids), len(input_ids))
    fields = flat_fields(
        input_ids=input_ids,
        positions=positions,
        slot_mapping=slots,
        sample_rows=sample_rows,
        kv_lens=kv_lens,
        starts=starts,
        block_tables=[chunk.request.block_table for chunk in ordered],
        block_size=block_size,
        device=device,
    )
    return Batch(
        chunks=ordered,
        cu_seqlens=starts,
        kv_lens_host=kv_lens,
        num_decodes=[chunk.num_tokens for chunk in ordered].count(1),
        **fields,
    )


def flat_fields(
    *,
    input_ids: Sequence[int],
    positions: Sequence[int],
    slot_mapping: Sequence[int],
    sample_rows: Sequence[int],
    kv_lens: Sequence[int],
    starts: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    block_size: int,
    device: torch.device,
) -> dict[str, Any]:
    """The fields of `FlatTokens` from lists; everything goes to the device in one transfer."""
    parts = (input_ids, positions, slot_mapping, sample_rows, kv_lens, starts)
    packed = array("q")
    for part in parts:
        packed.extend(part)
    num_blocks = max(map(len, block_tables))
    for table in block_tables:
        packed.extend(table)
        packed.frombytes(bytes((num_blocks - len(table)) * packed.itemsize))
    on_device = torch.frombuffer(packed, dtype=torch.int64).to(device)
    tensors = on_device.split_with_sizes([*map(len, parts), len(block_tables) * num_blocks])
    pointers = [tensor.data_ptr() for tensor in tensors]
    return {
        "input_ids": tensors[0],
        "positions": tensors[1],
        "slot_mapping": tensors[2],
        "sample_rows": tensors[3],
        "kv_lens": tensors[4],
        "starts": tensors[5],
        "block_tables": tensors[6].view(-1, num_blocks),
        "block_size": block_size,
        "c_struct": CBatch(
            num_tokens=len(input_ids),
            num_sequences=len(kv_lens),
            block_size=block_size,
            block_table_stride=num_blocks,
            num_sampled=len(sample_rows),
            token_ids=pointers[0],
            positions=pointers[1],
            slots=pointers[2],
            sampled_rows=pointers[3],
            kv_lens=pointers[4],
            starts=pointers[5],
            block_tables=pointers[6],
        ),
    }


def _order(chunk: Chunk) -> tuple[bool, int]:
    """Single tokens first, the shortest sequence before the longer ones, so that neighbours can be padded together."""
    is_prefill = chunk.num_tokens > 1
    return is_prefill, 0 if is_prefill else chunk.request.num_computed_tokens


def _add_slots(slots: list[int], block_table: "array[int]", first: int, last: int, *, block_size: int) -> None:
    """Appends where the tokens `first` : `last` lie, block by block."""
    if last - first == 1:
        slots.append(block_table[first // block_size] * block_size + first % block_size)
        return
    while first < last:
        block, offset = divmod(first, block_size)
        count = min(block_size - offset, last - first)
        slot = block_table[block] * block_size + offset
        slots += range(slot, slot + count)
        first += count
