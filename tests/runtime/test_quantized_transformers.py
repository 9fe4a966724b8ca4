"""Checkpoints that are quantised already, with transformers' classes: floats in the place of quantised layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from flashgen_runtime.engine.sizes import weight_bytes
from flashgen_runtime.errors import ConfigError, WeightsError
from flashgen_runtime.loader.materialize import load_model
from tests.quantized_checkpoints import Kind, awq, compressed, gptq, write_quantized
from tests.runtime.test_paths import load as load_path
from tests.runtime_models import tiny_module

KINDS = (
    awq(16),
    gptq(4, 16, is_sorted=True),
    gptq(8, -1),
    compressed(group_size=16, is_symmetric=False),
    compressed("int-quantized", 8, None),
    compressed("float-quantized", 8, None),
)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probe finds out is kept apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(family: str, folder: Path, kind: Kind) -> Path:
    """A quantised checkpoint in `folder / family`; returns the one in floats that it means."""
    tiny_module(family).save_pretrained(folder / "source")
    return write_quantized(folder / "source", folder / family, kind)


def assert_same_weights(path: Path, reference: Path, dtype: Any) -> None:
    ours, expected = (load_model(each, dtype=dtype, device="cpu").module.state_dict() for each in (path, reference))
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


@kinds
@pytest.mark.parametrize("family", ["phi3", "mixtral"])
def test_weights_are_what_the_format_defines(family: str, kind: Kind, tmp_path: Path) -> None:
    """In float32 bit for bit, in the model's dtype rounded once; experts that transformers merges included."""
    reference = written(family, tmp_path, kind)

    assert_same_weights(tmp_path / family, reference, "float32")
    assert_same_weights(tmp_path / family, reference, str(kind.dtype).removeprefix("torch."))


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
def test_it_runs_on_flat_batches(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The class is probed as if it had never been quantised; what runs is reported and logged."""
    kind = gptq(4, 16)
    written(family, tmp_path, kind)
    caplog.set_level("INFO")

    model = load_path(family, tmp_path)

    assert model.description.path == "paged"
    assert model.description.quantization == "gptq int4 g16 as float16"
    (record,) = [record for record in caplog.records if "run as floats" in record.message]
    assert vars(record)["fields"]["reason"] == "transformers' classes take no codes"
    assert load_path(family, tmp_path, quantization="int4").description.quantization == "gptq int4 g16 as float16"
    with pytest.raises(ConfigError, match="`int8` cannot be had"):
        load_path(family, tmp_path, quantization="int8")


@kinds
def test_bytes_are_those_of_the_floats(kind: Kind, tmp_path: Path) -> None:
    """Counted from headers alone."""
    reference = written("phi3", tmp_path, kind)
    dtype: Any = str(kind.dtype).removeprefix("torch.")

    assert weight_bytes(tmp_path / "phi3", dtype="auto", quantization=None) == weight_bytes(
        reference, dtype=dtype, quantization=None
    )


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ("scales", "lacks tensor `model.layers.0.mlp.down_proj.scales`"),
        ("qweight", "lacks tensor `model.layers.0.mlp.down_proj.weight`"),
    ],
)
def test_missing_tensors_are_named(part: str, problem: str, tmp_path: Path) -> None:
    """Of a layer that is quantised, and of one that is not there at all."""
    written("phi3", tmp_path, awq(16))
    file = tmp_path / "phi3" / "model.safetensors"
    names = [f"model.layers.0.mlp.down_proj.{each}" for each in ("qweight", "qzeros", "scales")]
    gone = [names[2]] if part == "scales" else names
    save_file({name: tensor for name, tensor in load_file(file).items() if name not in gone}, file)

    with pytest.raises(WeightsError) as caught:
        load_model(tmp_path / "phi3", dtype="auto", device="cpu")

    assert problem in str(caught.value)


def test_shapes_that_do_not_fit_together(tmp_path: Path) -> None:
    """The layer is named."""
    written("phi3", tmp_path, gptq(4, 16))
    file = tmp_path / "phi3" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.down_proj.scales"
    save_file({**tensors, name: tensors[name][:, :-8].contiguous()}, file)

    with pytest.raises(WeightsError, match=r"layer `model\.layers\.0\.mlp\.down_proj`"):
        load_model(tmp_path / "phi3", dtype="auto", device="cpu")


def test_a_quantised_layer_that_the_configuration_excludes(tmp_path: Path) -> None:
    """Which of the two is wrong nobody knows."""
    written("phi3", tmp_path, awq(16))
    file = tmp_path / "phi3" / "config.json"
    tree = json.loads(file.read_text())
    tree["quantization_config"]["modules_to_not_convert"] = ["down_proj"]
    file.write_text(json.dumps(tree))

    with pytest.raises(WeightsError, match=r"says that `model\.layers\.0\.mlp\.down_proj` is not quantised"):
        load_model(tmp_path / "phi3", dtype="auto", device="cpu")


def test_encoders(tmp_path: Path) -> None:
    """BERT runs with transformers' class where it is quantised."""
    config = BertConfig(
        vocab_size=100, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "source")

    reference = write_quantized(tmp_path / "source", tmp_path / "bert", compressed(group_size=16))

    assert_same_weights(tmp_path / "bert", reference, "float32")
