"""Attention over the paged cache: every instruction set against float64 and torch, bit for bit against itself."""

import random as random_module
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from flashgen_runtime.kernels import library as kernels
from flashgen_runtime.kernels import twins
from flashgen_runtime.kernels.paged_attention import (
    KVFormat,
    KVLayer,
    make_batch,
    paged_attention,
    rounds_factors,
    store_kv,
)

# Query heads, heads of the cache, key size, value size: grouped, one to one, one for all, odd sizes, more than a tile.
HEADS = [
    (4, 2, 128, 128),
    (3, 3, 64, 64),
    (8, 1, 80, 80),
    (6, 2, 96, 32),
    (5, 1, 36, 20),
    (2, 1, 256, 256),
    (26, 1, 4, 4),
]

# Arguments beside queries and cache.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 17},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": True},
    "everything": {"window": 70, "softcap": 5.0, "sinks": True},
    "encoder": {"is_causal": False},
    "encoder with window": {"is_causal": False, "window": 9},
}


@pytest.fixture(params=kernels.isas() or [""])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this processor, one after the other."""
    if not request.param:
        pytest.skip("no kernels for this processor")
    kernels.select_isa(request.param)
    yield request.param
    kernels.select_isa(kernels.isas()[0])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Enough for batches this small; the test of batches takes more."""
    kernels.set_num_threads(1)
    yield
    kernels.set_num_threads(torch.get_num_threads())


every_isa = pytest.mark.usefixtures("isa")


@dataclass(frozen=True)
class Sequences:
    """Keys and values of some sequences in one cache, and queries for all of their tokens."""

    layer: KVLayer
    tables: list[list[int]]

    # By sequence: [length, H, key_size].
    queries: list[torch.Tensor]

    def attend(self, parts: Sequence[tuple[int, int, int]], **arguments: Any) -> list[torch.Tensor]:
        """For each (sequence, first token, last token) what those tokens attend to, all in one batch."""
        tables = [self.tables[sequence] for sequence, _, _ in parts]
        lens = [last - first for _, first, last in parts]
        batch = make_batch(lens, [last for *_, last in parts], tables, block_size=self.layer.block_size)
        queries = torch.cat([self.queries[sequence][first:last] for sequence, first, last in parts])
        return list(torch.split(self._attention(queries, batch, arguments), lens))

    def _attention(self, queries: torch.Tensor, batch: Any, arguments: dict[str, Any]) -> torch.Tensor:
        return paged_attention(queries, self.layer, batch, scaling=queries.shape[-1] ** -0.5, **arguments)


@dataclass(frozen=True)
class OnTwin(Sequences):
    """The same in plain torch."""

    rounds: bool = False

    def _attention(self, queries: torch.Tensor, batch: Any, arguments: dict[str, Any]) -> torch.Tensor:
        everything: dict[str, Any] = {"window": None, "softcap": None, "sinks": None, "is_causal": True, **arguments}
        return twins.paged_attention(
            queries,
            self.layer,
            starts=batch.starts.tolist(),
            kv_lens=batch.kv_lens.tolist(),
            block_tables=batch.block_tables,
            scaling=queries.shape[-1] ** -0.5,
            rounds=self.rounds,
            **everything,
        )


def make_sequences(
    lens: Sequence[int],
    heads: tuple[int, int, int, int],
    kv_format: KVFormat,
    *,
    block_size: int = 32,
    seed: int = 0,
    kind: type[Sequences] = Sequences,
) -> Sequences:
    """Random sequences in random blocks; what belongs to none of them is NaN, which must reach nobody."""
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads, key_size, value_size = heads
    sizes = [-(-length // block_size) for length in lens]
    blocks = torch.randperm(sum(sizes) + 2, generator=generator).tolist()
    layer = KVLayer(len(blocks), block_size, num_kv_heads, key_size, value_size, kv_format)
    _fill_with_nan(layer)
    tables = [[blocks.pop() for _ in range(size)] for size in sizes]
    for length, table in zip(lens, tables, strict=True):
        positions = torch.arange(length)
        keys = torch.randn(length, num_kv_heads, key_size, generator=generator)
        values = torch.randn(length, num_kv_heads, value_size, generator=generator)
        store_kv(
            keys, values, layer, torch.tensor(table)[positions // block_size] * block_size + positions % block_size
        )
    queries = [torch.randn(length, num_heads, key_size, generator=generator) for length in lens]
    return kind(layer, tables, queries)


def _fill_with_nan(layer: KVLayer) -> None:
    is_scaled = layer.key_scales is not None and layer.value_scales is not None
    for tensor in (layer.key_scales, layer.value_scales) if is_scaled else (layer.keys, layer.values):
        assert tensor is not None
        tensor.fill_(torch.nan)


def arguments_of(variant: str, num_heads: int) -> dict[str, Any]:
    arguments = dict(VARIANTS[variant])
    if "sinks" in arguments:
        arguments["sinks"] = torch.linspace(-2, 3, num_heads)
    return arguments


def reference(sequences: Sequences, part: tuple[int, int, int], **arguments: Any) -> torch.Tensor:
    """Attention in float64 of what the cache holds."""
    sequence, first, last = part
    window, softcap, sinks = (arguments.get(name) for name in ("window", "softcap", "sinks"))
    layer, positions = sequences.layer, torch.arange(last)
    slots = torch.tensor(sequences.tables[sequence])[positions // layer.block_size] * layer.block_size
    queries = sequences.queries[sequence][first:last].double()
    group = queries.shape[1] // layer.num_kv_heads
    keys, values = (
        stored.double().repeat_interleave(group, dim=1) for stored in layer.read(slots + positions % layer.block_size)
    )
    distance = torch.arange(first, last)[:, None] - positions
    is_hidden = (distance < 0) & arguments.get("is_causal", True) | (distance.abs() >= (window or last))
    scores = torch.einsum("thd,khd->htk", queries, keys) * queries.shape[2] ** -0.5
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    weights = scores.masked_fill(is_hidden, -torch.inf).exp()
    totals = weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks.double().exp()[:, None, None])
    return torch.einsum("htk,khv->thv", weights / totals, values)


@every_isa
@pytest.mark.parametrize("kv_format", KVFormat)
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_equals_float64(kv_format: KVFormat, variant: str) -> None:
    """Decoding tokens beside chunks of prompts, over what the cache holds in its format.

    Where queries and weights are rounded to 8 bits too, within that; the twin, which rounds alike, is much nearer:
    only where a number is between two of bfloat16 may it round the other way.
    """
    shift = list(VARIANTS).index(variant)
    for index, heads in enumerate((HEADS * 2)[shift : shift + 3]):
        sequences = make_sequences([1, 40, 70, 33, 64], heads, kv_format, seed=index, block_size=32 * (1 + index % 2))
        parts = [(0, 0, 1), (1, 39, 40), (2, 50, 70), (3, 0, 33), (4, 63, 64)]
        arguments = arguments_of(variant, heads[0])

        attended = sequences.attend(parts, **arguments)

        rounds = rounds_factors(sequences.layer)
        for actual, part in zip(attended, parts, strict=True):
            assert (actual - reference(sequences, part, **arguments)).abs().max() < (2e-2 if rounds else 2e-6)
        if rounds:
            on_twin = OnTwin(sequences.layer, sequences.tables, sequences.queries, rounds=True)
            for actual, expected in zip(attended, on_twin.attend(parts, **arguments), strict=True):
                assert (actual - expected).abs().max() < 5e-3
                assert (actual - expected).abs().mean() < 5e-6


@pytest.mark.parametrize("block_size", [7, 32])
@pytest.mark.parametrize("kv_format", KVFormat)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_twin_equals_float64(
    kv_format: KVFormat, variant: str, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain torch gives the same, with blocks of any size."""
    monkeypatch.setattr(twins, "MAX_GATHERED_TOKENS", 100)
    heads = (6, 2, 20, 12)
    sequences = make_sequences([1, 40, 70, 33, 64], heads, kv_format, block_size=block_size, kind=OnTwin)
    parts = [(0, 0, 1), (1, 39, 40), (4, 63, 64), (2, 50, 70), (3, 0, 33), (2, 69, 70)]
    arguments = arguments_of(variant, heads[0])

    attended = sequences.attend(parts, **arguments)

    for actual, part in zip(attended, parts, strict=True):
        assert (actual - reference(sequences, part, **arguments)).abs().max() < 2e-6


@every_isa
@pytest.mark.parametrize("kv_format", KVFormat)
def test_kernel_and_twin_store_the_same(kv_format: KVFormat) -> None:
    """Both leave the same bits in the cache, whatever the strides of what they are given."""
    keys, values = torch.randn(20, 3, 40), torch.randn(3, 20, 24).transpose(0, 1)
    values[4, 1] = 0
    slots = torch.randperm(96)[:20]
    ours, theirs = (KVLayer(3, 32, 3, 40, 24, kv_format) for _ in range(2))

    store_kv(keys, values, ours, slots)
    theirs.write(keys, values, slots)

    for name in ("keys", "values", "key_scales", "value_scales"):
        stored, expected = getattr(ours, name), getattr(theirs, name)
        assert stored is expected is None or torch.equal(stored, expected)


@pytest.mark.parametrize("kv_format", KVFormat)
def test_the_cache_gives_back_what_was_stored(kv_format: KVFormat) -> None:
    """Within the format's rounding; int8 within half a step of its scale."""
    keys, values = torch.randn(20, 3, 40), torch.randn(20, 3, 24)
    slots = torch.randperm(96)[:20]
    layer = KVLayer(3, 32, 3, 40, 24, kv_format)

    store_kv(keys, values, layer, slots)

    for stored, given in zip(layer.read(slots), (keys, values), strict=True):
        if kv_format is KVFormat.INT8:
            assert ((stored - given).abs() <= 0.501 / 127 * given.abs().amax(-1, keepdim=True)).all()
        else:
            assert torch.equal(stored, given.to(kv_format.dtype).float())


@every_isa
@pytest.mark.parametrize("kv_format", KVFormat)
@pytest.mark.parametrize("variant", ["plain", "everything"])
@pytest.mark.parametrize("heads", [(4, 2, 64, 64), (7, 1, 20, 24)])
def test_a_token_has_the_same_bits_in_every_batch(
    kv_format: KVFormat, variant: str, heads: tuple[int, int, int, int]
) -> None:
    """Alone, in batches of up to 64, in chunks, token by token, on two threads: the bits of the whole prompt."""
    choose = random_module.Random(0)
    lens = [choose.randint(1, 90) for _ in range(64)]
    sequences = make_sequences(lens, heads, kv_format)
    arguments = arguments_of(variant, heads[0])
    whole = sequences.attend([(i, 0, length) for i, length in enumerate(lens)], **arguments)

    def assert_equal(parts: list[tuple[int, int, int]]) -> None:
        for actual, (sequence, first, last) in zip(sequences.attend(parts, **arguments), parts, strict=True):
            assert torch.equal(actual, whole[sequence][first:last])

    for _ in range(6):
        chosen = choose.sample(range(64), choose.randint(1, 64))
        cuts = [sorted(choose.choices(range(lens[i] + 1), k=2)) for i in chosen]
        assert_equal([(i, first, last) for i, (first, last) in zip(chosen, cuts, strict=True) if first < last])
    for sequence in range(2):
        assert_equal([(sequence, 0, lens[sequence])])
        for token in range(0, lens[sequence], 7):
            assert_equal([(sequence, token, token + 1)])
    kernels.set_num_threads(2)
    assert_equal([(i, lens[i] // 2, lens[i]) for i in range(64) if lens[i] > 1])


@every_isa
@pytest.mark.parametrize("kv_format", KVFormat)
def test_copied_blocks_give_the_same_bits(kv_format: KVFormat) -> None:
    """Where blocks lie does not matter, and a copy is whole: keys, values and scales."""
    sequences = make_sequences([100], (4, 2, 64, 32), kv_format, block_size=64)
    before = sequences.attend([(0, 0, 100)])[0]
    table = sequences.tables[0]
    free = [block for block in range(sequences.layer.num_blocks) if block not in table]

    sequences.layer.copy_blocks(list(zip(table, free, strict=True)))
    sequences.layer.copy_blocks([])

    moved = Sequences(sequences.layer, [free], sequences.queries)
    assert torch.equal(moved.attend([(0, 0, 100)])[0], before)


@pytest.mark.parametrize("kv_format", KVFormat)
def test_the_twin_copies_blocks_of_any_size(kv_format: KVFormat) -> None:
    """Blocks that are no whole tiles are copied token by token."""
    layer = KVLayer(4, 5, 2, 8, 4, kv_format)
    layer.write(torch.randn(20, 2, 8), torch.randn(20, 2, 4), torch.arange(20))
    keys, values = layer.read(torch.arange(20))

    layer.copy_blocks([(0, 3), (1, 2)])

    copied = layer.read(torch.arange(20))
    order = [0, 1, 1, 0]
    assert torch.equal(copied[0], keys.view(4, 5, 2, 8)[order].flatten(0, 1))
    assert torch.equal(copied[1], values.view(4, 5, 2, 4)[order].flatten(0, 1))


@every_isa
def test_large_scores_do_not_overflow() -> None:
    """Scores of thousands leave one key with all the weight, and no NaN."""
    sequences = make_sequences([50], (2, 1, 64, 64), KVFormat.F32)
    sequences.queries[0].mul_(1000)

    attended = sequences.attend([(0, 0, 50)])[0]

    assert torch.isfinite(attended).all()
    assert torch.equal(
        attended[0], sequences.layer.read(torch.tensor(sequences.tables[0][:1]) * 32)[1].expand(2, -1, -1)[:, 0]
    )


def test_a_layer_knows_its_bytes() -> None:
    """int8 counts its scales: two float32 for each token and head."""
    layer = KVLayer(3, 32, 2, 64, 32, KVFormat.INT8)

    assert layer.nbytes == 96 * 2 * (64 + 32 + 2 * 4)
    assert KVLayer(3, 32, 2, 64, 32, KVFormat.BF16).nbytes == 96 * 2 * (64 + 32) * 2
