"""Norms, activations, embeddings, rotation: every instruction set against torch, bit for bit against itself."""

from collections.abc import Callable, Iterator

import pytest
import torch

from flashgen_runtime.kernels import library as kernels
from flashgen_runtime.kernels import operations, twins
from flashgen_runtime.kernels.kv_layer import KVFormat, KVLayer
from flashgen_runtime.kernels.operations import Activation

# Rows of one broken vector, of whole vectors, of whole groups of four and with a rest of each.
SIZES = [1, 7, 16, 20, 64, 100, 256, 1000, 1024]


@pytest.fixture(params=kernels.isas() or [""], autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this processor, one after the other."""
    if not request.param:
        pytest.skip("no kernels for this processor")
    kernels.select_isa(request.param)
    kernels.set_num_threads(1)
    yield request.param
    kernels.select_isa(kernels.isas()[0])
    kernels.set_num_threads(torch.get_num_threads())


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


def ulps(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error in units in the last place of float32."""
    spacing = torch.finfo(torch.float32).eps * exact.abs().clamp(min=torch.finfo(torch.float32).tiny)
    return float(((actual.double() - exact).abs() / spacing).max())


def assert_rows_stand_alone(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    """Each row gives the same bits alone, behind other rows and on two threads."""
    whole = function(x)

    assert torch.equal(torch.cat([function(row[None]) for row in x]), whole)
    assert torch.equal(function(x[3:]), whole[3:])
    kernels.set_num_threads(2)
    assert torch.equal(function(x), whole)
    kernels.set_num_threads(1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_equals_its_twin(size: int, offset: float) -> None:
    """Rows of any length, the weight itself or one more than it."""
    x, weight = random(5, size), random(size, seed=1)

    normed = operations.rms_norm(x, weight, eps=1e-6, offset=offset)

    torch.testing.assert_close(normed, twins.rms_norm(x, weight, eps=1e-6, offset=offset), rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("size", SIZES[1:])
def test_layer_norm_equals_its_twin(size: int) -> None:
    """Rows of any length, far from zero too."""
    x, weight, bias = random(5, size) + 3, random(size, seed=1), random(size, seed=2)

    normed = operations.layer_norm(x, weight, bias, eps=1e-5)

    torch.testing.assert_close(normed, twins.layer_norm(x, weight, bias, eps=1e-5), rtol=1e-5, atol=1e-5)


def test_norms_take_rows_that_are_not_dense() -> None:
    """Columns of a wider tensor, and more dimensions than two."""
    wide, weight = random(3, 4, 100), random(40)

    normed = operations.rms_norm(wide[..., 20:60], weight, eps=1e-6)

    torch.testing.assert_close(normed, operations.rms_norm(wide[..., 20:60].clone(), weight, eps=1e-6))


def test_norms_of_a_row_do_not_depend_on_others() -> None:
    """The same bits alone, in a batch and on two threads."""
    weight, bias = random(1000, seed=1), random(1000, seed=2)

    assert_rows_stand_alone(lambda x: operations.rms_norm(x, weight, eps=1e-6), random(64, 1000))
    assert_rows_stand_alone(lambda x: operations.layer_norm(x, weight, bias, eps=1e-6), random(64, 1000))


@pytest.mark.parametrize("kind", Activation)
def test_activations_are_accurate(kind: Activation) -> None:
    """A few units in the last place from float64, over the whole range where the function is not nearly zero."""
    x = torch.cat((torch.linspace(-12, 12, 9973), torch.linspace(-0.1, 0.1, 997), torch.tensor([0.0, -90.0, 200.0])))

    y = operations.activate(x, kind)

    exact = twins.activate(x.double(), kind.name.lower())
    assert (y - exact).abs().max() < 5e-7 * 200
    is_large = x > -1
    assert ulps(y[is_large], exact[is_large]) < 12
    assert (y - exact)[~is_large].abs().max() < 1e-6


@pytest.mark.parametrize("size", [3, 16, 100])
@pytest.mark.parametrize("kind", Activation)
def test_a_gate_is_an_activation_times_the_other_half(kind: Activation, size: int) -> None:
    """Bit for bit what two steps give."""
    x = random(6, 2 * size)

    gated = operations.gated_activation(x, kind)

    assert torch.equal(gated, operations.activate(x[:, :size], kind) * x[:, size:])


@pytest.mark.parametrize("kind", Activation)
def test_an_activation_does_not_depend_on_its_place(kind: Activation) -> None:
    """A number gives the same bits in every lane, in whole vectors and in broken ones."""
    x = random(50)

    whole = operations.activate(x, kind)

    for first in range(17):
        assert torch.equal(operations.activate(x[first:], kind), whole[first:])
        assert torch.equal(operations.activate(x[: 50 - first], kind), whole[: 50 - first])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [5, 64, 100])
def test_embeddings_are_rows_of_the_table(dtype: torch.dtype, size: int) -> None:
    """Bit for bit, times the scale."""
    table, ids = random(30, size).to(dtype), torch.tensor([[3, 29], [0, 3]])

    assert torch.equal(operations.embed(table, ids, scale=1.5), twins.embed(table, ids, scale=1.5))


def test_rope_angles_are_right_far_out() -> None:
    """Cosine and sine of the float32 angle, up to a million tokens, against float64."""
    positions = torch.cat((torch.arange(64), torch.tensor([1000, 32767, 131072, 999_999, 1_000_000])))
    frequencies = 10000.0 ** (-torch.arange(0, 44, 2) / 44)

    angles = operations.rope_angles(positions, frequencies, factor=1.0)

    exact = (positions.float()[:, None] * frequencies).double()
    expected = torch.cat((exact.cos(), exact.sin()), dim=-1)
    assert (angles - expected).abs().max() < 1.5e-7


def test_rope_angles_take_a_factor() -> None:
    """Both cosines and sines are scaled, as YaRN wants it."""
    positions, frequencies = torch.arange(9), random(5).abs()

    scaled = operations.rope_angles(positions, frequencies, factor=1.25)

    assert torch.equal(scaled, 1.25 * operations.rope_angles(positions, frequencies))


@pytest.mark.parametrize("kv_format", KVFormat)
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("key_size", "count"), [(64, 32), (128, 64), (20, 10), (64, 8), (96, 20)])
def test_rope_and_store_equals_its_twin(kv_format: KVFormat, has_norms: bool, key_size: int, count: int) -> None:
    """Queries, and what the cache holds, whole and partial rotation."""
    num_heads, num_kv_heads, value_size, rows = 6, 2, 36, 40
    qkv = random(rows, (num_heads + num_kv_heads) * key_size + num_kv_heads * value_size)
    angles = operations.rope_angles(torch.arange(rows), random(count).abs())
    slots = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:rows]
    norms = (random(key_size, seed=1), random(key_size, seed=2)) if has_norms else (None, None)
    layers = [KVLayer(2, 32, num_kv_heads, key_size, value_size, kv_format) for _ in range(2)]
    inputs = [qkv.clone(), qkv.clone()]

    query_norm, key_norm = norms
    functions: list[Callable[..., None]] = [operations.rope_and_store, twins.rope_and_store]
    for function, x, layer in zip(functions, inputs, layers, strict=True):
        function(
            x,
            angles,
            layer,
            slots,
            num_heads=num_heads,
            query_norm=query_norm,
            key_norm=key_norm,
            eps=1e-6,
            offset=0.0,
        )

    queries = [x[:, : num_heads * key_size] for x in inputs]
    torch.testing.assert_close(queries[0], queries[1], rtol=1e-5, atol=2e-6)
    # After a norm a value may lie on the other side of a rounding border, one step away; without it all bits agree.
    step = {KVFormat.F32: 1e-5, KVFormat.F16: 2e-3, KVFormat.BF16: 1.6e-2, KVFormat.INT8: 3e-2}[kv_format]
    for ours, theirs in zip(layers[0].read(slots), layers[1].read(slots), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=step, atol=step)
        assert has_norms or torch.equal(ours, theirs)
