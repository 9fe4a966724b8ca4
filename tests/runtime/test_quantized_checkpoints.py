"""Checkpoints that are quantised already, natively: every kind against the floats that its format defines."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config

from flashgen_runtime.engine.native_decoder import NativeDecoder
from flashgen_runtime.engine.prepare import best_layout, prepare
from flashgen_runtime.engine.sizes import weight_bytes
from flashgen_runtime.errors import ConfigError, WeightsError
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.kernels.panels import WeightFormat
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.safetensors_header import read_header
from flashgen_runtime.loader.store import Store
from tests.quantized_checkpoints import KINDS, Kind, awq, compressed, gptq, write_quantized
from tests.runtime.test_native_decoder import (
    CONFIGS,
    LENGTHS,
    SIZES,
    STEPS,
    last_logits,
    load,
    relative_error,
    save,
    sequences,
)

pytestmark = pytest.mark.skipif(current_isa() is None, reason="without kernels transformers' classes run all models")

# Well-conditioned, so that rounded activations change little; biases, and a head of its own.
CONFIG = Qwen2Config(**{**SIZES, "initializer_range": 0.06}, tie_word_embeddings=False)

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
few_kinds = pytest.mark.parametrize(
    "kind", [awq(), gptq(8, -1), gptq(is_sorted=True), compressed()], ids=lambda kind: kind.name
)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in floats."""
    folder = tmp_path_factory.mktemp("source")
    save(CONFIG, folder)
    return folder


def written(floats: Path, folder: Path, kind: Kind) -> tuple[Path, Path]:
    """A quantised checkpoint, and the one in floats that it means."""
    return folder / "model", write_quantized(floats, folder / "model", kind)


def logits(folder: Path, **options: Any) -> torch.Tensor:
    return last_logits(load(folder, **options), sequences(LENGTHS), steps=STEPS)


def formats(decoder: NativeDecoder) -> set[WeightFormat]:
    """Of all linear layers but the head."""
    layers = decoder._found.weights.layers
    groups = [(each.queries_keys_values, each.output, each.gate_and_up, each.down) for each in layers]
    return {panels.format for group in groups for parts in group for panels in parts}


@kinds
def test_float32_is_what_the_format_defines(kind: Kind, floats: Path, tmp_path: Path) -> None:
    """Asked for in float32, every bit is that of a model that was given the defined weights."""
    path, reference = written(floats, tmp_path, kind)

    decoder = load(path, dtype="float32")

    assert torch.equal(last_logits(decoder, sequences(LENGTHS), steps=STEPS), logits(reference))
    assert decoder.description.quantization == f"{kind.label} as float32"


@kinds
def test_in_its_own_precision(kind: Kind, floats: Path, tmp_path: Path) -> None:
    """Integers that the kernels take stay integers, near the floats; the others are the floats in the model's dtype."""
    path, reference = written(floats, tmp_path, kind)
    decoder = load(path)
    dtype = decoder.description.dtype

    found = last_logits(decoder, sequences(LENGTHS), steps=STEPS)

    assert dtype == str(kind.dtype).removeprefix("torch.")
    if not kind.keeps_codes:
        assert torch.equal(found, logits(reference, dtype=dtype))
        assert decoder.description.quantization == f"{kind.label} as {dtype}"
        return
    in_floats = logits(reference)
    assert decoder.description.quantization == kind.label
    assert formats(decoder) == {WeightFormat.INT4 if "int4" in kind.label else WeightFormat.INT8}
    # Activations are rounded to int8, as with every int8 or int4 layer: about a hundredth.
    assert relative_error(found, in_floats) < 0.03
    assert torch.equal(found.argmax(dim=1), in_floats.argmax(dim=1))


@few_kinds
def test_prepared_weights_give_the_same_bits(kind: Kind, floats: Path, tmp_path: Path) -> None:
    """Prepared like any other checkpoint: its bytes are known beforehand, and its name says what it is."""
    path, _ = written(floats, tmp_path, kind)
    store = Store(tmp_path / "store")
    expected = logits(path)

    first = logits(path, access=WeightAccess(store=store))
    info = prepare(path, store)

    assert best_layout(path) == "panels"
    assert not info.is_new
    assert info.path.name.startswith(f"{info.dtype}-{kind.label.replace(' ', '-')}")
    size = max(entry.end for entry in read_header(info.path).tensors.values())
    assert weight_bytes(path, dtype="auto", quantization=None) == size
    assert torch.equal(first, expected)
    for loader in ("map", "arena"):
        assert torch.equal(logits(path, access=WeightAccess(store=store, loader=loader)), expected)


@pytest.mark.parametrize(("kind", "option"), [(awq(), "int4"), (gptq(8, -1), "int8"), (compressed(), "int4")])
def test_the_spec_may_name_the_precision_that_there_is(kind: Kind, option: Any, floats: Path, tmp_path: Path) -> None:
    """The same bits as without; float32 beside it is for the rest of the model."""
    path, _ = written(floats, tmp_path, kind)

    named = load(path, quantization=option)

    assert torch.equal(last_logits(named, sequences(LENGTHS), steps=STEPS), logits(path))
    assert formats(load(path, quantization=option, dtype="float32")) == formats(named)


@pytest.mark.parametrize(
    ("kind", "option"), [(awq(), "int8"), (gptq(8, -1), "int4"), (compressed("float-quantized", 8, None), "int8")]
)
def test_another_precision_is_refused(kind: Kind, option: Any, floats: Path, tmp_path: Path) -> None:
    """Rounding what is rounded already is nothing that anybody means."""
    path, _ = written(floats, tmp_path, kind)

    with pytest.raises(ConfigError, match=rf"`{option}` cannot be had of `model`, .* already: {kind.label}; leave"):
        load(path, quantization=option)


def test_layers_that_are_left_in_floats(floats: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of three fused projections is not quantised: the three are floats together, and the log says so."""
    kind = gptq(dynamic={r"-:.*\.k_proj": {}})
    kind = replace(kind, floats=("lm_head", "k_proj"))
    path, reference = written(floats, tmp_path, kind)
    caplog.set_level("INFO")

    decoder = load(path)

    assert decoder.description.quantization == "gptq int4 g32 in part as float16"
    assert formats(decoder) == {WeightFormat.INT4, WeightFormat.F16}
    (record,) = [record for record in caplog.records if "run as floats" in record.message]
    assert vars(record)["fields"]["layers"] == "model.layers.*.self_attn.q_proj, model.layers.*.self_attn.v_proj"
    assert relative_error(logits(path), logits(reference)) < 0.03
    assert torch.equal(logits(path, dtype="float32"), logits(reference))


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (awq(modules_to_not_convert=["self_attn", "layers.1.mlp"]), ("lm_head", "self_attn.", "layers.1.mlp")),
        (gptq(modules_in_block_to_quantize=[["mlp.up_proj", "mlp.gate_proj"], ["mlp.down_proj"]]), ("self_attn.",)),
        (compressed(ignore=["lm_head", r"re:.*self_attn\.", "model.layers.1.mlp.up_proj"]), ("self_attn.", "1.mlp.up")),
    ],
    ids=["awq", "gptq", "ct"],
)
def test_lists_of_layers(kind: Kind, layers: tuple[str, ...], floats: Path, tmp_path: Path) -> None:
    """What each method leaves in floats, by the words of its own."""
    names = {name.removesuffix(".weight") for name in load_file(floats / "model.safetensors") if "_proj.weight" in name}
    left = tuple(name for name in names if any(each in name for each in layers))
    path, reference = written(floats, tmp_path, replace(kind, floats=("lm_head", *left)))

    assert torch.equal(logits(path, dtype="float32"), logits(reference))


def test_groups_of_several_precisions(floats: Path, tmp_path: Path) -> None:
    """Names of a target come before classes, whatever their order."""
    four, eight = compressed(), compressed(bits=8, group_size=None)
    groups = {
        "linear": four.config["config_groups"]["group_0"],
        "down": {**eight.config["config_groups"]["group_0"], "targets": ["re:.*down_proj"]},
    }
    config = {**four.config, "config_groups": groups}
    fours, eights = tmp_path / "four" / "model", tmp_path / "eight" / "model"
    references = [
        load_file(write_quantized(floats, *each) / "model.safetensors") for each in ((fours, four), (eights, eight))
    ]
    path, reference = tmp_path / "mixed", tmp_path / "mixed-floats"
    for folder, ours, theirs in (
        (path, load_file(fours / "model.safetensors"), load_file(eights / "model.safetensors")),
        (reference, *references),
    ):
        folder.mkdir()
        mixed = {name: tensor for name, tensor in ours.items() if "down_proj" not in name}
        mixed |= {name: tensor for name, tensor in theirs.items() if "down_proj" in name}
        save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text((floats / "config.json").read_text())
    edit(path, dtype="bfloat16", quantization_config=config)

    decoder = load(path)

    assert decoder.description.quantization == "compressed-tensors int4 g32 + int8"
    assert formats(decoder) == {WeightFormat.INT4, WeightFormat.INT8}
    assert torch.equal(logits(path, dtype="float32"), logits(reference))


@pytest.mark.parametrize("family", ["llama-biases", "mistral", "qwen3"])
@few_kinds
def test_families(family: str, kind: Kind, tmp_path: Path) -> None:
    """Biases, windows, norms of heads, heads that are the embedding."""
    source = tmp_path / "source"
    save(CONFIGS[family], source)
    path, reference = written(source, tmp_path, kind)

    assert torch.equal(logits(path, dtype="float32"), logits(reference))


def test_a_quantised_head(floats: Path, tmp_path: Path) -> None:
    """GPTQ may round the head too; then it is an int4 layer like others."""
    kind = replace(gptq(lm_head=True), floats=())
    path, reference = written(floats, tmp_path, kind)

    assert torch.equal(logits(path, dtype="float32"), logits(reference))
    assert load(path)._found.weights.head.format is WeightFormat.INT4


def test_biases_that_a_tool_adds(tmp_path: Path) -> None:
    """AutoGPTQ writes zeros where the architecture has no bias; a bias of another size is an error."""
    source = tmp_path / "source"
    save(CONFIGS["llama"], source)
    path, reference = written(source, tmp_path, gptq())
    bias = "model.layers.0.self_attn.k_proj.bias"
    change(path, lambda tensors: {**tensors, bias: torch.zeros(32, dtype=torch.float16)})

    assert torch.equal(logits(path, dtype="float32"), logits(reference))
    assert torch.isfinite(logits(path)).all()
    change(path, lambda tensors: {**tensors, bias: torch.zeros(31, dtype=torch.float16)})
    with pytest.raises(WeightsError, match=r"k_proj\.bias` has the shape \[31\], its configuration says \[32\]"):
        load(path)


@pytest.mark.parametrize(
    ("kind", "change_to", "problem"),
    [
        (awq(), {"bits": 3}, "`quantization_config.bits` is 3, expected `4`"),
        (awq(), {"version": "gemv"}, "`quantization_config.version` is 'gemv', expected `gemm`"),
        (awq(), {"group_size": 0}, "group_size` is 0, expected a positive number, or -1"),
        (awq(), {"zero_point": "yes"}, "zero_point` is 'yes', expected `True` or `False`"),
        (gptq(), {"bits": 3}, "`quantization_config.bits` is 3, expected `4` or `8`"),
        (gptq(), {"checkpoint_format": "marlin"}, "checkpoint_format` is 'marlin', expected `gptq` or `gptq_v2`"),
        (gptq(), {"dynamic": {"+:.*down.*": {"bits": 8}}}, "expected patterns with `-:` alone"),
        (gptq(), {"dynamic": {"-:(": {}}}, "expected regular expressions, and '(' is none"),
        (gptq(), {"quant_method": "aqlm"}, "quant_method` is 'aqlm', expected `awq` or `gptq` or `compressed-tensors`"),
        (gptq(), {"quant_method": None}, "quant_method` is None, expected `awq`"),
        (compressed(), {"format": "nvfp4-pack-quantized"}, "expected `pack-quantized` or `int-quantized` or"),
        (compressed(), {"kv_cache_scheme": {"num_bits": 8}}, "`engine.kv_cache.dtype` in the spec"),
        (compressed(), {"sparsity_config": {"format": "sparse-24-bitmask"}}, "expected dense weights"),
        (compressed(), {"config_groups": {}}, "config_groups` is {}, expected at least one group"),
        (compressed(bits=3), {}, "config_groups.group_0.weights.num_bits` is 3, expected `4` or `8`"),
        (compressed(), {"ignore": ["re:["]}, "`quantization_config.ignore`"),
    ],
)
def test_what_is_not_run_is_named(
    kind: Kind, change_to: dict[str, Any], problem: str, floats: Path, tmp_path: Path
) -> None:
    """The key, its value, and what would be run."""
    path, _ = written(floats, tmp_path, awq() if kind.name == "ct-pack-3-group" else kind)
    edit(path, quantization_config={**kind.config, **change_to})

    with pytest.raises(WeightsError) as caught:
        load(path)

    assert caught.value.path == path / "config.json"
    assert problem in caught.value.problem


def test_keys_that_are_null_say_nothing(floats: Path, tmp_path: Path) -> None:
    """As tools write what nobody has set; names of kernels to run with say nothing either."""
    kind = gptq(sym=None, desc_act=None, dynamic=None, modules_in_block_to_quantize=None, format=None, backend="marlin")
    path, reference = written(floats, tmp_path, kind)

    assert torch.equal(logits(path, dtype="float32"), logits(reference))
    assert load(path).description.quantization == "gptq int4 g32"


LAYER = "model.layers.1.mlp.down_proj"


def without(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {each: tensor for each, tensor in tensors.items() if each != f"{LAYER}.{name}"}


def replaced(
    name: str, make: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {**tensors, f"{LAYER}.{name}": make(tensors[f"{LAYER}.{name}"])}


@pytest.mark.parametrize(
    ("kind", "damage", "problem"),
    [
        (awq(), without("scales"), f"lacks tensor `{LAYER}.scales`"),
        (awq(), replaced("qweight", lambda t: t[:-8].contiguous()), r"shape [152, 8], its configuration says [160, 8]"),
        (awq(), replaced("qweight", lambda t: t.float()), "dtype F32, expected one of I32"),
        (gptq(), without("g_idx"), f"lacks tensor `{LAYER}.g_idx`"),
        (gptq(), replaced("g_idx", lambda t: t.flip(0).contiguous()), f"layer `{LAYER}`: `g_idx` orders the inputs"),
        (gptq(), replaced("qzeros", lambda t: t + 1), f"layer `{LAYER}`: `qzeros` are not the middle"),
        (gptq(is_sorted=True), replaced("g_idx", lambda t: t + 1), "`g_idx` names the group 5 of 5"),
        (compressed(), without("weight_scale"), f"lacks tensor `{LAYER}.weight_scale`"),
        (compressed(is_symmetric=False), without("weight_zero_point"), f"lacks tensor `{LAYER}.weight_zero_point`"),
        (compressed(), replaced("weight_shape", lambda t: t + 8), "`weight_shape` is [72, 168], which is not that"),
        (compressed("int-quantized", 8, None), replaced("weight", lambda t: t.half()), "dtype F16, expected one of I8"),
        (compressed(), lambda t: {**t, f"{LAYER}.weight": torch.zeros(1)}, f"holds tensor `{LAYER}.weight`, which"),
    ],
)
def test_wrong_files_are_named(kind: Kind, damage: Any, problem: str, floats: Path, tmp_path: Path) -> None:
    """A tensor that is missing, of another shape or type, or that contradicts the configuration."""
    path, _ = written(floats, tmp_path, kind)
    change(path, damage)

    with pytest.raises(WeightsError) as caught:
        load(path)

    assert problem in str(caught.value)


def edit(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def change(folder: Path, make: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Other tensors in the place of a checkpoint's own."""
    file = folder / "model.safetensors"
    save_file(make(load_file(file)), folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(file)
