"""Linear layers on the tiles of AMX, over tiles that a library built for this test emulates."""

from collections.abc import Iterator

import pytest
import torch

from flashgen_runtime.kernels import build as kernels_build
from flashgen_runtime.kernels import library as kernels
from flashgen_runtime.kernels import panels as panels_module
from flashgen_runtime.kernels.library import KernelLibrary
from flashgen_runtime.kernels.panels import WeightFormat, in_place, linear, pack, pack_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not kernels_build.has_compiler(), reason="ziglang is not installed"),
    pytest.mark.skipif("avx512_bf16" not in kernels.isas(), reason="what is not tiles needs avx512_bf16"),
]

# Values of x that a step takes.
STEP = 32

# out_features, in_features, rows: whole and broken panels, steps and tiles of rows; several blocks of rows and steps.
SHAPES = [(32, 64, 16), (33, 65, 5), (100, 130, 17), (7, 3, 70), (1, 1, 2), (70, 9000, 33), (64, 2048, 1)]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    """Plain loops take the place of the tiles' instructions; all else is what is shipped."""
    folder = tmp_path_factory.mktemp("emulated")
    library = KernelLibrary(
        kernels_build.build("x86_64", folder, isas=["avx512_bf16", "amx"], defines=["FG_EMULATED_TILES"])
    )
    assert library.available_isas().decode() == "avx512_bf16,amx"
    assert library.select_isa(b"amx") == 0
    return library


@pytest.fixture(autouse=True)
def on_tiles(emulated: KernelLibrary, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(panels_module, "library", lambda: emulated)
    monkeypatch.setattr(panels_module, "rounds_to_bf16", lambda: True)
    emulated.set_num_threads(2)
    return


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def summed_as_tiles_do(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T of bfloat16 in float32: of each step the even and the odd values of k, then both, then all steps."""
    x, weight = (torch.nn.functional.pad(each.bfloat16().float(), (0, -each.shape[1] % STEP)) for each in (x, weight))
    y = torch.zeros(len(x), len(weight))
    for step in range(0, x.shape[1], STEP):
        even, odd = torch.zeros_like(y), torch.zeros_like(y)
        for k in range(step, step + STEP, 2):
            even += x[:, k, None] * weight[:, k]
            odd += x[:, k + 1, None] * weight[:, k + 1]
        y += even + odd
    return y


@pytest.mark.parametrize(("out_features", "in_features", "rows"), SHAPES)
def test_int8_equals_torch_bit_for_bit(out_features: int, in_features: int, rows: int) -> None:
    """Sums of int8 products are exact integers; scales and bias come as everywhere."""
    weight, x, bias = random(out_features, in_features), random(rows, in_features), random(out_features)

    y = linear(x, pack(weight, WeightFormat.INT8, bias=bias))

    assert torch.equal(y, panels_module._linear_on_torch(x, pack_rows(weight, WeightFormat.INT8, bias=bias)))


@pytest.mark.parametrize(("out_features", "in_features", "rows"), SHAPES)
def test_bf16_is_summed_in_the_order_of_the_instruction(out_features: int, in_features: int, rows: int) -> None:
    """Bit for bit what the processors' manual says, for every number of rows, which is close to torch's."""
    weight, x = random(out_features, in_features), random(rows, in_features)

    y = linear(x, pack(weight, WeightFormat.BF16))

    assert torch.equal(y, summed_as_tiles_do(x, weight))
    expected = panels_module._linear_on_torch(x, pack_rows(weight, WeightFormat.BF16))
    assert (y - expected).abs().max() <= 2e-5 * expected.abs().max() + 1e-6


@pytest.mark.parametrize("weight_format", WeightFormat)
def test_result_of_a_row_does_not_depend_on_its_batch(weight_format: WeightFormat, emulated: KernelLibrary) -> None:
    """Bits are equal beside any number of other rows and with any number of threads, on tiles or beside them."""
    panels = pack(random(75, 3500), weight_format, bias=random(75))
    x = random(70, 3500)

    y = linear(x, panels)

    for rows in (1, 5, 6, 15, 16, 17, 33, 48):
        assert torch.equal(linear(x[:rows], panels), y[:rows])
        assert torch.equal(linear(x[70 - rows :], panels), y[70 - rows :])
    for threads in (1, 3):
        emulated.set_num_threads(threads)
        assert torch.equal(linear(x, panels), y)


def test_weights_in_place_give_the_bits_of_panels() -> None:
    """Row-major weights are transposed on the way; `out` may be wider, and what is there may be added to."""
    weight, x, residual = random(41, 100).bfloat16(), random(20, 100), random(20, 41)
    expected = linear(x, pack(weight, WeightFormat.BF16))

    assert torch.equal(linear(x, in_place(weight)), expected)
    out = torch.full((20, 50), 7.0)
    out[:, 3:44] = residual
    linear(x, in_place(weight), out=out[:, 3:44], add=True)
    assert torch.equal(out[:, 3:44], expected + residual)
    assert (out[:, :3] == 7).all()


def test_what_follows_a_panel_is_not_read_as_weights() -> None:
    """A broken step ends within its panel: NaN in the next one reaches nobody."""
    weight = random(64, 50)
    weight[32:] = torch.nan
    x = random(20, 50)

    y = linear(x, pack(weight, WeightFormat.BF16))

    assert torch.equal(y[:, :32], summed_as_tiles_do(x, weight[:32]))
    assert y[:, 32:].isnan().all()
