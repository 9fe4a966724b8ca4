"""Linear layers: the kernels of every instruction set against their torch twin, and bit for bit against themselves."""

from collections.abc import Iterator

import pytest
import torch

from flashgen_runtime.kernels import library as kernels
from flashgen_runtime.kernels import panels as panels_module
from flashgen_runtime.kernels.panels import (
    Layout,
    Panels,
    WeightFormat,
    in_place,
    linear,
    pack,
    pack_fused,
    pack_rows,
    unpack,
)

# out_features, in_features, rows: whole and broken panels, words, groups and tiles; a panel of several blocks.
SHAPES = [(32, 64, 1), (33, 65, 5), (100, 130, 13), (7, 3, 70), (1, 1, 2), (256, 1024, 33), (40, 9000, 26)]
FLOATS = [WeightFormat.F32, WeightFormat.F16, WeightFormat.BF16]

needs_kernels = pytest.mark.skipif(not kernels.isas(), reason="no kernels for this processor")


@pytest.fixture(params=kernels.isas() or [None])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this processor, one after the other."""
    if request.param is None:
        pytest.skip("no kernels for this processor")
    kernels.select_isa(request.param)
    yield request.param
    kernels.select_isa(kernels.isas()[0])


every_isa = pytest.mark.usefixtures("isa")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    kernels.set_num_threads(2)
    yield
    kernels.set_num_threads(torch.get_num_threads())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def twin(x: torch.Tensor, weight: torch.Tensor, weight_format: WeightFormat, bias: torch.Tensor | None) -> torch.Tensor:
    """What torch makes of the same layer."""
    return panels_module._linear_on_torch(x, pack_rows(weight, weight_format, bias=bias))


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the order of a float32 sum."""
    assert (actual - expected).abs().max() <= 2e-5 * expected.abs().max() + 1e-6


@every_isa
@pytest.mark.parametrize("weight_format", WeightFormat)
@pytest.mark.parametrize(("out_features", "in_features", "rows"), SHAPES)
def test_kernel_equals_torch(weight_format: WeightFormat, out_features: int, in_features: int, rows: int) -> None:
    """Every format and shape gives what torch gives with weights and activations rounded alike."""
    weight, x, bias = random(out_features, in_features), random(rows, in_features), random(out_features)

    y = linear(x, pack(weight, weight_format, bias=bias))

    assert_close(y, twin(x, weight, weight_format, bias))


@every_isa
@pytest.mark.parametrize(("out_features", "in_features", "rows"), SHAPES)
def test_int8_equals_torch_bit_for_bit(out_features: int, in_features: int, rows: int) -> None:
    """Sums of int8 products are exact integers, whoever adds them."""
    weight, x = random(out_features, in_features), random(rows, in_features)

    y = linear(x, pack(weight, WeightFormat.INT8))

    assert torch.equal(y, twin(x, weight, WeightFormat.INT8, None))


@needs_kernels
@pytest.mark.parametrize("weight_format", WeightFormat)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_panels_hold_the_values_that_torch_rounds_to(weight_format: WeightFormat, dtype: torch.dtype) -> None:
    """Packing rounds as torch does, from every type that checkpoints have, zeros and whole zero groups included."""
    weight = random(45, 200).to(dtype)
    weight[3] = 0
    weight[:, 64:128] = 0

    assert torch.equal(unpack(pack(weight, weight_format)), unpack(pack_rows(weight, weight_format)))


@every_isa
@pytest.mark.parametrize("weight_format", WeightFormat)
@pytest.mark.parametrize("in_features", [96, 3500])
def test_result_of_a_row_does_not_depend_on_its_batch(weight_format: WeightFormat, in_features: int) -> None:
    """Bits are equal alone and beside any number of other rows, with any number of threads, strided or not."""
    panels = pack(random(75, in_features), weight_format, bias=random(75))
    x = random(70, in_features)

    y = linear(x, panels)

    for rows in (1, 2, 3, 11, 12, 13, 25, 48):
        assert torch.equal(linear(x[:rows], panels), y[:rows])
        assert torch.equal(linear(x[70 - rows :], panels), y[70 - rows :])
    for threads in (1, 3):
        kernels.set_num_threads(threads)
        assert torch.equal(linear(x, panels), y)
    wide = torch.zeros(70, in_features + 5)
    wide[:, 2:-3] = x
    assert torch.equal(linear(wide[:, 2:-3], panels), y)


@needs_kernels
@pytest.mark.parametrize("weight_format", WeightFormat)
def test_result_goes_into_columns_of_a_wider_tensor(weight_format: WeightFormat) -> None:
    """Rows of `out` may lie apart; what lies between them is left alone."""
    panels, x = pack(random(41, 64), weight_format), random(5, 64)
    out = torch.full((5, 50), 7.0)

    linear(x, panels, out=out[:, 3:44])

    assert torch.equal(out[:, 3:44], linear(x, panels))
    assert (out[:, :3] == 7).all()
    assert (out[:, 44:] == 7).all()


@pytest.mark.parametrize("layout", Layout)
def test_result_is_added_to_what_is_there(layout: Layout) -> None:
    """A residual: y is added after the bias, once."""
    weight, bias = random(41, 64), random(41)
    panels = pack(weight, WeightFormat.F32, bias=bias)
    if layout is not Layout.PANELS:
        panels = in_place(weight, bias=bias, deterministic=layout is Layout.ROWS)
    x, residual = random(3, 64), random(3, 41)

    out = linear(x, panels, out=residual.clone(), add=True)

    assert torch.equal(out, linear(x, panels) + residual)


@needs_kernels
@pytest.mark.parametrize("weight_format", WeightFormat)
def test_fused_layers_give_what_they_give_one_by_one(weight_format: WeightFormat) -> None:
    """The outputs of fused layers follow one another, bit for bit; a missing bias is zero."""
    weights, biases = [random(40, 70), random(24, 70)], [None, random(24)]
    x = random(4, 70)

    fused = linear(x, pack_fused(weights, weight_format, biases=biases))

    first = linear(x, pack(weights[0], weight_format, bias=torch.zeros(40)))
    second = linear(x, pack(weights[1], weight_format, bias=biases[1]))
    assert torch.equal(fused, torch.cat([first, second], dim=1))


@needs_kernels
def test_group_size_of_int4_is_free() -> None:
    """Any multiple of 8."""
    weight, x = random(50, 300), random(6, 300)

    for group_size in (8, 24, 32, 128):
        panels = pack(weight, WeightFormat.INT4, group_size=group_size)
        rows = pack_rows(weight, WeightFormat.INT4, group_size=group_size)
        assert_close(linear(x, panels), panels_module._linear_on_torch(x, rows))


@every_isa
@pytest.mark.parametrize("weight_format", FLOATS)
@pytest.mark.parametrize(("out_features", "in_features", "rows"), SHAPES)
def test_weights_in_place_give_the_bits_of_panels(
    weight_format: WeightFormat, out_features: int, in_features: int, rows: int
) -> None:
    """Row-major weights are transposed on the way: the same chain of additions."""
    weight = random(out_features, in_features).to(panels_module._DTYPES[weight_format])
    x = random(rows, in_features)

    assert torch.equal(linear(x, in_place(weight)), linear(x, pack(weight, weight_format)))


@every_isa
@pytest.mark.parametrize("weight_format", FLOATS)
@pytest.mark.parametrize(("out_features", "in_features", "rows"), SHAPES)
def test_weights_in_place_may_be_summed_in_any_order(
    weight_format: WeightFormat, out_features: int, in_features: int, rows: int
) -> None:
    """The fast order for few rows gives the same numbers up to rounding."""
    weight = random(out_features, in_features).to(panels_module._DTYPES[weight_format])
    x, bias = random(rows, in_features), random(out_features)

    y = linear(x, in_place(weight, bias=bias, deterministic=False))

    assert_close(y, twin(x, weight, weight_format, bias))


@needs_kernels
def test_weights_in_place_are_not_copied() -> None:
    """The layer reads the tensor that it was given."""
    weight = random(32, 64).bfloat16()
    assert in_place(weight).data.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("weight_format", WeightFormat)
def test_torch_does_the_work_without_kernels(weight_format: WeightFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a library the same functions give the same numbers."""
    weight, bias, x = random(50, 200), random(50), random(2, 3, 200)
    expected = linear(x, pack(weight, weight_format, bias=bias))
    monkeypatch.setattr(panels_module, "library", lambda: None)
    monkeypatch.setattr(panels_module, "rounds_to_bf16", lambda: kernels.current_isa() == "avx512_bf16")

    panels = pack(weight, weight_format, bias=bias)

    assert panels.layout is Layout.ROWS
    assert_close(linear(x, panels), expected)
    assert unpack(panels).shape == weight.shape


def test_size_counts_values_scales_and_bias() -> None:
    """`nbytes` is what the layer keeps in memory."""
    panels = pack(random(64, 128), WeightFormat.INT8, bias=random(64))
    assert panels.nbytes == 64 * 128 + 64 * 4 + 64 * 4


@needs_kernels
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_not_finite_stay_visible(value: float) -> None:
    """Rounding to int8 does not hide them: their row is not finite, and no other."""
    x = random(3, 64)
    x[1, 5] = value
    panels: Panels = pack(random(40, 64), WeightFormat.INT8)

    y = linear(x, panels)

    assert not y[1].isfinite().any()
    assert y[0].isfinite().all()
    assert y[2].isfinite().all()
