"""Flattened batches: every token where its request says, in both forms."""

import random
from array import array
from ctypes import POINTER, c_int64, cast

import torch

from flashgen_runtime.engine.batch import Batch, build_batch
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.scheduler import Chunk

BLOCK_SIZE = 32
CPU = torch.device("cpu")


def random_chunk(number: int, generator: random.Random, blocks: list[int]) -> Chunk:
    """Half of them decode; tokens of all requests differ."""
    num_tokens = generator.randint(2, 150)
    num_computed = num_tokens - 1 if generator.random() < 0.5 else generator.randrange(num_tokens)
    chunk = Request(
        request_id=str(number),
        params=SamplingParams(max_tokens=1),
        token_ids=[1000 * number + place for place in range(num_tokens)],
        num_prompt_tokens=num_tokens,
        seed=0,
        eos_ids=frozenset(),
        num_computed_tokens=num_computed,
        block_table=array("q", [blocks.pop() for _ in range(-(-num_tokens // BLOCK_SIZE))]),
    )
    return Chunk(chunk, generator.randint(1, num_tokens - num_computed))


def random_batch(seed: int, *, num_sequences: int) -> Batch:
    generator = random.Random(seed)
    blocks = list(range(num_sequences * 5))
    generator.shuffle(blocks)
    chunks = [random_chunk(number, generator, blocks) for number in range(num_sequences)]
    return build_batch(chunks, block_size=BLOCK_SIZE, device=CPU)


def test_every_token_stands_where_its_request_says() -> None:
    """Ids, positions, slots, lengths and the rows to sample, compared with the definition of each."""
    for seed in range(20):
        batch = random_batch(seed, num_sequences=1 + seed)

        assert batch.starts.tolist() == batch.cu_seqlens
        assert batch.kv_lens.tolist() == batch.kv_lens_host
        sampled = []
        for index, (request, num_tokens) in enumerate(batch.chunks):
            rows = range(batch.cu_seqlens[index], batch.cu_seqlens[index + 1])
            table = batch.block_tables[index].tolist()
            assert len(rows) == num_tokens
            assert batch.kv_lens_host[index] == request.num_computed_tokens + num_tokens
            assert table[: len(request.block_table)] == request.block_table.tolist()
            for position, row in enumerate(rows, request.num_computed_tokens):
                slot = request.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
                assert batch.positions[row] == position
                assert batch.input_ids[row] == request.token_ids[position]
                assert batch.slot_mapping[row] == slot
            sampled += [rows[-1]] if position == len(request.token_ids) - 1 else []
        assert batch.sample_rows.tolist() == sampled
        assert len(batch.sampled_chunks) == len(sampled)


def test_single_tokens_come_first_and_the_shortest_of_them_before_the_longer() -> None:
    """Neighbours of similar length can be padded together."""
    for seed in range(10):
        batch = random_batch(seed, num_sequences=8)

        counts = [chunk.num_tokens for chunk in batch.chunks]
        decodes = batch.kv_lens_host[: batch.num_decodes]
        assert counts[: batch.num_decodes] == [1] * batch.num_decodes
        assert 1 not in counts[batch.num_decodes :]
        assert decodes == sorted(decodes)


def test_kernels_read_the_same() -> None:
    """The struct's counts, and its pointers into the tensors."""
    batch = random_batch(3, num_sequences=6)
    struct = batch.c_struct

    def read(pointer: int, count: int) -> list[int]:
        return cast(pointer, POINTER(c_int64))[:count]

    assert (struct.num_tokens, struct.num_sequences) == (len(batch.input_ids), 6)
    assert (struct.num_sampled, struct.block_size) == (len(batch.sample_rows), BLOCK_SIZE)
    assert struct.block_table_stride == batch.block_tables.shape[1]
    assert read(struct.token_ids, struct.num_tokens) == batch.input_ids.tolist()
    assert read(struct.positions, struct.num_tokens) == batch.positions.tolist()
    assert read(struct.slots, struct.num_tokens) == batch.slot_mapping.tolist()
    assert read(struct.starts, 7) == batch.cu_seqlens
    assert read(struct.kv_lens, 6) == batch.kv_lens_host
    assert read(struct.sampled_rows, struct.num_sampled) == batch.sample_rows.tolist()
    assert read(struct.block_tables, 6 * struct.block_table_stride) == batch.block_tables.flatten().tolist()
