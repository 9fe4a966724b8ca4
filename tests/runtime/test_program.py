"""A program's one call gives what its operations give one by one in Python, and what their twins give."""

from collections.abc import Callable

import pytest
import torch

from flashgen_runtime.engine.native_encoder import flatten_texts
from flashgen_runtime.kernels import program as program_module
from flashgen_runtime.kernels.kv_layer import KVFormat, KVLayer
from flashgen_runtime.kernels.library import library
from flashgen_runtime.kernels.operations import Activation
from flashgen_runtime.kernels.panels import WeightFormat, pack
from flashgen_runtime.kernels.program import Program, Rows

NUM_HEADS, HEAD_SIZE = 4, 16
SIZE = NUM_HEADS * HEAD_SIZE
TEXTS = [[3, 1, 4], list(range(40)), [7]]

needs_kernels = pytest.mark.skipif(library() is None, reason="compares the kernels with what runs without them")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def build(program: Program, *, window: int | None = None, is_causal: bool = True) -> list[Rows]:
    """Every kind of operation once, and what each gives."""
    layer = KVLayer(8, 32, 2, HEAD_SIZE, HEAD_SIZE, KVFormat.F32)
    table, positions = random(50, SIZE), random(64, SIZE)
    angles = program.rope_angles(10.0 ** -torch.arange(HEAD_SIZE / 2), factor=0.9)
    hidden = program.embed(table, out=program.buffer(SIZE), scale=0.5)
    hidden = program.add_positions(hidden, positions)
    normed = program.rms_norm(hidden, random(SIZE), eps=1e-5, out=program.buffer(SIZE))
    qkv = program.linear(normed, pack(random(2 * SIZE, SIZE), WeightFormat.F32), out=program.buffer(2 * SIZE))
    queries = program.rope_and_store(
        qkv, layer, angles=angles, num_heads=NUM_HEADS, query_norm=random(HEAD_SIZE), norm_eps=1e-6
    )
    attended = program.attention(
        queries,
        layer,
        num_heads=NUM_HEADS,
        scaling=0.25,
        window=window,
        is_causal=is_causal,
        out=program.buffer(SIZE),
    )
    added = program.linear(
        attended, pack(random(SIZE, SIZE), WeightFormat.INT8, bias=random(SIZE)), out=normed.values, is_added=True
    )
    selected = program.select_sampled(added)
    scaled = program.layer_norm(selected, random(SIZE), random(SIZE), eps=1e-5, out=program.buffer(SIZE))
    gated = program.gated_activation(scaled, Activation.SILU, out=program.buffer(SIZE // 2))
    activated = program.activate(gated, Activation.GELU, out=program.buffer(SIZE // 2))
    panels = pack(table[:, : SIZE // 2], WeightFormat.BF16)
    logits = program.linear(activated, panels, out=program.buffer(50), name="head")
    again = program.embed(panels, out=program.buffer(SIZE // 2))
    return [angles, hidden, queries, attended, added, selected, scaled, gated, activated, logits, again]


def results(run: Callable[[Program], None], **options: bool | int | None) -> list[torch.Tensor]:
    program = Program(max_tokens=64)
    rows = build(program, **options)
    run(program)
    return [each.values[: 2 if each.is_sampled else 44].clone() for each in rows]


def batch() -> program_module.ProgramBatch:
    """The three texts, two of whose tokens are sampled."""
    return flatten_texts(TEXTS, sample_rows=[2, 43])


@needs_kernels
@pytest.mark.parametrize(("window", "is_causal"), [(None, True), (9, True), (None, False)])
def test_one_call_gives_what_the_operations_give_in_python(
    window: int | None, is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list in memory means what its methods say; the same kernels run, so the bits are the same."""
    options = {"window": window, "is_causal": is_causal}
    expected = results(lambda program: program.run(batch()), **options)

    monkeypatch.setattr(program_module, "library", lambda: None)
    found = results(lambda program: program.run(batch()), **options)

    for one_call, one_by_one in zip(expected, found, strict=True):
        assert torch.equal(one_call, one_by_one)


@needs_kernels
def test_profile_computes_the_same_and_names_every_operation() -> None:
    """One operation at a time: seconds by name."""
    expected = results(lambda program: program.run(batch()))
    profiles = []

    found = results(lambda program: profiles.append(program.profile(batch())))

    for whole, profiled in zip(expected, found, strict=True):
        assert torch.equal(whole, profiled)
    names = {"rope", "embed", "norm", "linear", "rope and store", "attention", "select", "activation", "head"}
    assert profiles[0].keys() == names
    assert all(seconds > 0 for seconds in profiles[0].values())


def test_operations_without_rows_are_left_out() -> None:
    """A batch whose results nobody wants leaves what concerns them untouched."""
    program = Program(max_tokens=64)
    rows = build(program)
    logits = next(each for each in rows if each.values.shape[1] == 50)
    logits.values.fill_(7.0)

    program.run(flatten_texts(TEXTS))

    assert (logits.values == 7.0).all()
    assert logits.is_sampled


def test_batches_fit_the_buffers() -> None:
    """The scheduler keeps to the budget; memory behind the buffers is never written."""
    program = Program(max_tokens=8)
    program.embed(random(50, SIZE), out=program.buffer(SIZE))

    with pytest.raises(AssertionError, match="budget"):
        program.run(batch())
