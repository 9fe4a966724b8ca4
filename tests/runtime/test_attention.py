"""Attention over the paged cache and over flat rows, against attention over plain tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flashgen_runtime.engine.attention import UnsupportedAttentionError, attending, decoder_attention
from flashgen_runtime.engine.batch import Batch, build_batch
from flashgen_runtime.engine.encoder import FlatAttention
from flashgen_runtime.engine.kv_cache import KVCache, LayerShape
from flashgen_runtime.engine.paged_attention import PagedAttention
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.scheduler import Chunk

BLOCK_SIZE = 4
HEADS, KV_HEADS, KEY_DIM, VALUE_DIM = 4, 2, 8, 6
SCALING = 0.3
CPU = torch.device("cpu")

# (tokens in the cache, new tokens) of each sequence: decodes of very different lengths, fresh prompts, later chunks.
SEQUENCES = [(0, 5), (9, 1), (1, 1), (7, 6), (0, 1), (300, 1), (8, 3), (2, 1)]


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition: query [H, n, D], key and value [H_kv, L, D] → [n, H, D]; the queries are the last n tokens."""
    key, value = (states.repeat_interleave(HEADS // KV_HEADS, dim=0) for states in (key, value))
    scores = query @ key.transpose(1, 2) * SCALING
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    num_queries, num_keys = scores.shape[1:]
    position = torch.arange(num_keys - num_queries, num_keys)[:, None]
    distance = position - torch.arange(num_keys)
    scores = scores.masked_fill((distance < 0) | (distance >= (window or num_keys)), -torch.inf).exp()
    total = scores.sum(dim=2, keepdim=True) + (0 if sinks is None else sinks.exp()[:, None, None])
    return (scores / total @ value).transpose(0, 1)


def requests_with_blocks(num_blocks: int) -> list[Request]:
    """Requests for `SEQUENCES` whose blocks lie scattered over the cache."""
    scattered = iter(torch.randperm(num_blocks).tolist())
    requests = []
    for number, (num_computed, num_new) in enumerate(SEQUENCES):
        num_tokens = num_computed + num_new
        request = Request(
            request_id=str(number),
            params=SamplingParams(max_tokens=1),
            token_ids=[number] * num_tokens,
            num_prompt_tokens=num_tokens,
            seed=0,
            eos_ids=frozenset(),
            num_computed_tokens=num_computed,
        )
        request.block_table.extend(next(scattered) for _ in range(-(-num_tokens // BLOCK_SIZE)))
        requests.append(request)
    return requests


def fill_history(cache: KVCache, request: Request, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Writes what earlier steps would have: keys and values [H_kv, L, D]."""
    positions = torch.arange(request.num_computed_tokens)
    table = torch.tensor(list(request.block_table))
    slots = table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    num_computed = request.num_computed_tokens
    cache.write(0, keys[:, :num_computed].transpose(0, 1), values[:, :num_computed].transpose(0, 1), slots=slots)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    **{f"window of {window}": {"window": window} for window in (1, 5, 16, 1000)},
    "softcap": {"softcap": 0.7},
    "sinks": {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "all three": {"window": 5, "softcap": 0.7, "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_paged_attention_equals_plain_attention(options: dict[str, Any]) -> None:
    """Decodes, fresh prompts and later chunks in one flat row give what each sequence gives alone."""
    torch.manual_seed(0)
    cache = KVCache(
        [LayerShape(KV_HEADS, KEY_DIM, VALUE_DIM)],
        num_blocks=200,
        block_size=BLOCK_SIZE,
        dtype=torch.float32,
        device=CPU,
    )
    requests = requests_with_blocks(200)
    states = {
        request.request_id: (
            torch.randn(HEADS, len(request.token_ids) - request.num_computed_tokens, KEY_DIM),
            torch.randn(KV_HEADS, len(request.token_ids), KEY_DIM),
            torch.randn(KV_HEADS, len(request.token_ids), VALUE_DIM),
        )
        for request in requests
    }
    for request in requests:
        fill_history(cache, request, *states[request.request_id][1:])
    chunks = [Chunk(request, request.num_uncomputed_tokens) for request in requests]
    batch = build_batch(chunks, block_size=BLOCK_SIZE, device=CPU)
    ordered = [(chunk, *states[chunk.request.request_id]) for chunk in batch.chunks]
    query = torch.cat([query for _, query, _, _ in ordered], dim=1)[None]
    key = torch.cat([key[:, chunk.request.num_computed_tokens :] for chunk, _, key, _ in ordered], dim=1)[None]
    value = torch.cat([value[:, chunk.request.num_computed_tokens :] for chunk, _, _, value in ordered], dim=1)[None]

    attended = PagedAttention(cache, batch, torch.float32).attend(
        0,
        query,
        key,
        value,
        scaling=SCALING,
        sliding_window=options.get("window"),
        softcap=options.get("softcap"),
        sinks=options.get("sinks"),
    )

    expected = [plain_attention(q, k, v, **options) for _, q, k, v in ordered]
    torch.testing.assert_close(attended[0], torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_blocks_are_copied_in_all_layers() -> None:
    """Several blocks at once, keys and values, source to target."""
    layers = [LayerShape(KV_HEADS, KEY_DIM, VALUE_DIM)] * 2
    cache = KVCache(layers, num_blocks=6, block_size=BLOCK_SIZE, dtype=torch.float32, device=CPU)
    slots = torch.arange(6 * BLOCK_SIZE)
    for layer in range(2):
        keys, values = torch.randn(len(slots), KV_HEADS, KEY_DIM), torch.randn(len(slots), KV_HEADS, VALUE_DIM)
        cache.write(layer, keys, values, slots=slots)

    cache.copy_blocks([(0, 4), (2, 5)])

    for layer in range(2):
        for states in cache.read(layer, torch.tensor([[0], [4], [2], [5], [1]])):
            assert torch.equal(states[0], states[1])
            assert torch.equal(states[2], states[3])
            assert not torch.equal(states[0], states[4])


def test_flat_attention_equals_plain_attention() -> None:
    """Sequences of one row, some of equal length, see themselves and nothing else."""
    torch.manual_seed(0)
    lengths = [1, 1, 3, 3, 3, 7]
    query, key = torch.randn(1, HEADS, sum(lengths), KEY_DIM), torch.randn(1, HEADS, sum(lengths), KEY_DIM)
    value = torch.randn(1, HEADS, sum(lengths), VALUE_DIM)

    attended = FlatAttention(lengths).attend(None, query, key, value, scaling=SCALING, sliding_window=None)

    pieces = zip(*(states[0].split(lengths, dim=1) for states in (query, key, value)), strict=True)
    expected = [torch.softmax(q @ k.transpose(1, 2) * SCALING, dim=-1) @ v for q, k, v in pieces]
    torch.testing.assert_close(attended[0], torch.cat(expected, dim=1).transpose(0, 1))


def build_one_batch() -> Batch:
    requests = requests_with_blocks(200)
    chunks = [Chunk(request, request.num_uncomputed_tokens) for request in requests]
    return build_batch(chunks, block_size=BLOCK_SIZE, device=CPU)


def test_batch_holds_every_token_once() -> None:
    """Positions count on from what is computed, slots all differ, and the last token of each chunk is sampled."""
    batch = build_one_batch()

    assert len(batch.input_ids) == sum(num_new for _, num_new in SEQUENCES)
    assert len(set(batch.slot_mapping.tolist())) == len(batch.slot_mapping)
    assert batch.num_decodes == 5
    assert batch.kv_lens_host[:5] == [1, 2, 3, 10, 301]
    assert batch.sample_rows.tolist() == [end - 1 for end in batch.cu_seqlens[1:]]
    for index, (first, last) in enumerate(zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)):
        kv_len = batch.kv_lens_host[index]
        assert batch.positions[first:last].tolist() == list(range(kv_len - (last - first), kv_len))
        assert set(batch.input_ids[first:last].tolist()) == {int(batch.chunks[index].request.request_id)}


class Echo:
    """An attention context that gives back the values."""

    def attend(self, layer: Any, query: Any, key: Any, value: torch.Tensor, **_: Any) -> torch.Tensor:
        del layer, query, key
        return value.transpose(1, 2)


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "attention_mask": {"attention_mask": torch.zeros(1, 1, 2, 2)},
    "position_bias": {"position_bias": torch.zeros(1, 4, 2, 2)},
    "dropout": {"dropout": 0.1},
    "is_causal=False": {"is_causal": False},
    "something_new": {"something_new": True},
}


@pytest.fixture
def call() -> Callable[..., Any]:
    """Calls the attention function as a model class does."""

    def call_attention(attention_mask: torch.Tensor | None = None, **arguments: Any) -> Any:
        states = torch.zeros(1, HEADS, 2, KEY_DIM)
        with attending(Echo()):
            return decoder_attention(torch.nn.Module(), states, states, states, attention_mask, **arguments)

    return call_attention


@pytest.mark.parametrize("argument", UNSUPPORTED)
def test_what_is_not_implemented_is_refused(call: Callable[..., Any], argument: str) -> None:
    """An argument that would be ignored raises, or a model would answer wrongly without a word."""
    with pytest.raises(UnsupportedAttentionError) as caught:
        call(**UNSUPPORTED[argument])

    assert caught.value.argument == argument


def test_neutral_arguments_pass(call: Callable[..., Any]) -> None:
    """What model classes hand through without meaning, and what is `None`, is accepted."""
    attended, weights = call(position_ids=torch.zeros(1, 2), use_cache=False, something=None, sliding_window=3)

    assert attended.shape == (1, 2, HEADS, KEY_DIM)
    assert weights is None
