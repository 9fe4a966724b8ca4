"""Layers whose integers are given: the kernels of every instruction set take them bit for bit, zeros included."""

from collections.abc import Iterator

import pytest
import torch

from flashgen_runtime.kernels import coded_panels, panels
from flashgen_runtime.kernels import library as kernels
from flashgen_runtime.kernels.coded_panels import CodedWeight, pack_codes
from flashgen_runtime.kernels.panels import Panels, WeightFormat, linear, pack, panels_without_data, unpack

# Outputs, inputs, inputs of a group: whole and broken panels, words and groups; several blocks; one group for all.
INT4_SHAPES = [(32, 64, 32), (33, 65, 16), (100, 136, 8), (40, 9000, 128), (7, 200, 200), (5, 24, 24)]
INT8_SHAPES = [(32, 64), (33, 65), (1, 3), (40, 9000)]

pytestmark = pytest.mark.skipif(not kernels.isas(), reason="no kernels for this processor")


@pytest.fixture(params=kernels.isas() or [None])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this processor, one after the other."""
    kernels.select_isa(request.param)
    yield request.param
    kernels.select_isa(kernels.isas()[0])


every_isa = pytest.mark.usefixtures("isa")


def int4(out_features: int, in_features: int, group_size: int, *, has_offsets: bool) -> CodedWeight:
    generator = torch.Generator().manual_seed(in_features)
    num_groups = -(-in_features // group_size)
    scales = torch.rand(num_groups, out_features, generator=generator).half().float() + 0.01
    zeros = torch.randint(0, 16, scales.shape, generator=generator)
    codes = torch.randint(0, 16, (out_features, in_features), generator=generator, dtype=torch.uint8)
    return CodedWeight(codes, scales, (8 - zeros) * scales if has_offsets else None)


def dense(weight: CodedWeight, group_size: int) -> torch.Tensor:
    """What the codes mean, as float64."""
    group_of = torch.arange(weight.codes.shape[1]) // group_size
    values = (weight.codes.double() - 8) * weight.scales.double().T[:, group_of]
    return values if weight.offsets is None else values + weight.offsets.double().T[:, group_of]


def without_kernels(monkeypatch: pytest.MonkeyPatch, weight: CodedWeight, group_size: int) -> Panels:
    """The rows that torch takes."""
    with monkeypatch.context() as patch:
        patch.setattr(coded_panels, "library", lambda: None)
        return pack_codes(weight, WeightFormat.INT4, group_size=group_size)


@pytest.mark.parametrize("has_offsets", [False, True])
@pytest.mark.parametrize("shape", INT4_SHAPES)
def test_int4_keeps_codes_and_scales(
    shape: tuple[int, int, int], has_offsets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes out of panels and of rows are the weights that went in, to float32's last bit."""
    weight = int4(*shape, has_offsets=has_offsets)

    packed = pack_codes(weight, WeightFormat.INT4, group_size=shape[2])

    torch.testing.assert_close(unpack(packed).double(), dense(weight, shape[2]), rtol=1e-6, atol=1e-5)
    assert torch.equal(unpack(packed), unpack(without_kernels(monkeypatch, weight, shape[2])))


@every_isa
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("has_offsets", [False, True])
@pytest.mark.parametrize("shape", INT4_SHAPES)
def test_int4_equals_torch(
    shape: tuple[int, int, int], has_offsets: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel and its twin multiply the same integers; each row's bits are those that it has alone."""
    weight, x = int4(*shape, has_offsets=has_offsets), torch.randn(rows, shape[1])
    packed = pack_codes(weight, WeightFormat.INT4, group_size=shape[2], bias=torch.ones(shape[0]))

    y = linear(x, packed)

    expected = panels._linear_on_torch(x, without_kernels(monkeypatch, weight, shape[2])) + 1
    assert (y - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert torch.equal(linear(x[-1:], packed), y[-1:])


@every_isa
@pytest.mark.parametrize("shape", INT8_SHAPES)
def test_int8_keeps_codes_and_scales(shape: tuple[int, int]) -> None:
    """All 256 codes: what the kernel multiplies is what went in, and its sums are exact."""
    codes = torch.randint(0, 256, shape, dtype=torch.uint8)
    scales, x = torch.rand(shape[0]) + 0.01, torch.randn(9, shape[1])
    packed = pack_codes(CodedWeight(codes, scales, None), WeightFormat.INT8, group_size=0)

    y = linear(x, packed)

    signed = (codes.int() - 128).to(torch.int8)
    assert torch.equal(unpack(packed), signed.float() * scales[:, None])
    assert torch.equal(y, panels.linear_int8(x, panels.Rounded(signed, scales)))


def test_codes_that_were_rounded_here_give_the_same_panels() -> None:
    """The layout is that of `pack`: the same integers are the same bytes."""
    weight = torch.randn(70, 256)
    expected = pack(weight, WeightFormat.INT4)
    rounded = panels.round_to_int4(weight, panels.GROUP_SIZE)

    found = pack_codes(
        CodedWeight((rounded.values + 8).to(torch.uint8), rounded.scales, None),
        WeightFormat.INT4,
        group_size=panels.GROUP_SIZE,
    )

    assert torch.equal(found.data, expected.data)
    assert found.scales is not None
    assert expected.scales is not None
    assert torch.equal(found.scales, expected.scales)


def test_bytes_are_known_beforehand() -> None:
    """Of a layer with groups of another size, offsets and a bias."""
    packed = pack_codes(int4(33, 65, 16, has_offsets=True), WeightFormat.INT4, group_size=16, bias=torch.ones(33))

    empty = panels_without_data(WeightFormat.INT4, 65, 33, has_bias=True, has_offsets=True, group_size=16)

    assert empty.nbytes == packed.nbytes
