"""Loading checkpoints: what is loaded equals what was saved, and what does not fit is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from flashgen_runtime.engine.encoder import Encoder
from flashgen_runtime.errors import DeviceError, WeightsError
from flashgen_runtime.loader import load_model
from tests.runtime_models import tiny_module


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny Llama as transformers saves it."""
    tiny_module("llama").save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def edit_weights(folder: Path, *, without: str = "", **tensors: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if name != without}
    save_file({**kept, **tensors}, file, metadata={"format": "pt"})


def test_loaded_model_equals_the_saved_one(checkpoint: Path) -> None:
    """Same tensors, eval mode, no gradients, and the facts about it are right."""
    saved = tiny_module("llama").state_dict()

    model = load_model(checkpoint, dtype="auto", device="cpu")

    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.module.state_dict().items())
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.dtype is torch.float32
    assert model.weight_bytes >= sum(tensor.nbytes for tensor in saved.values())


def test_dtype(checkpoint: Path) -> None:
    """A named dtype converts; "auto" keeps what the checkpoint has."""
    assert load_model(checkpoint, dtype="bfloat16", device="cpu").dtype is torch.bfloat16
    tiny_module("llama").to(torch.bfloat16).save_pretrained(checkpoint)
    assert load_model(checkpoint, dtype="auto", device="cpu").dtype is torch.bfloat16
    assert load_model(checkpoint, dtype="float32", device="cpu").dtype is torch.float32


def test_shards_and_tied_head(tmp_path: Path) -> None:
    """A checkpoint in several files, whose head is the embedding and lies there once."""
    module = tiny_module("qwen3")
    module.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1

    model = load_model(tmp_path, dtype="auto", device="cpu")

    assert torch.equal(model.module.get_parameter("lm_head.weight"), module.get_parameter("lm_head.weight"))


def test_missing_tensor_is_named(checkpoint: Path) -> None:
    """A tensor of the architecture that the files lack would be random; it is an error."""
    edit_weights(checkpoint, without="model.layers.1.mlp.up_proj.weight")

    with pytest.raises(WeightsError, match=r"lacks tensor `model\.layers\.1\.mlp\.up_proj\.weight`"):
        load_model(checkpoint, dtype="auto", device="cpu")


def test_unexpected_tensor_is_named(checkpoint: Path) -> None:
    """A tensor that the architecture does not know means that it is another architecture."""
    edit_weights(checkpoint, extra=torch.zeros(2))

    with pytest.raises(WeightsError, match=r"model\.safetensors: holds tensor `extra`, which the architecture"):
        load_model(checkpoint, dtype="auto", device="cpu")


def test_wrong_shape_is_named(checkpoint: Path) -> None:
    """A tensor of another shape than the configuration says."""
    edit_weights(checkpoint, **{"model.norm.weight": torch.zeros(7)})

    with pytest.raises(WeightsError, match=r"tensor `model\.norm\.weight` has the shape \[7\].* says \[48\]"):
        load_model(checkpoint, dtype="auto", device="cpu")


def test_truncated_weights_are_named(checkpoint: Path) -> None:
    """A truncated file is found by its header, before transformers reads it."""
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(WeightsError, match=r"model\.safetensors: tensor .* the file is truncated"):
        load_model(checkpoint, dtype="auto", device="cpu")


def test_missing_config_is_named(checkpoint: Path) -> None:
    """A folder without configuration."""
    (checkpoint / "config.json").unlink()

    with pytest.raises(WeightsError, match=r"config\.json: no such file"):
        load_model(checkpoint, dtype="auto", device="cpu")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model_type": "unheard_of"}, "transformers does not take it"),
        ({"hidden_size": "wide"}, "transformers does not take it"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "`quantization_config.quant_method` is 'aqlm', expected"),
        ({"auto_map": {"AutoConfig": "code.Config"}, "model_type": "own"}, "transformers does not take it"),
    ],
)
def test_config_that_cannot_be_used_is_named(checkpoint: Path, fields: dict[str, Any], problem: str) -> None:
    """An architecture, a value or a quantisation that is not ours to run; code in the checkpoint never runs."""
    (checkpoint / "code.py").write_text("raise SystemExit('code of the checkpoint ran')")
    edit_config(checkpoint, **fields)

    with pytest.raises(WeightsError) as caught:
        load_model(checkpoint, dtype="auto", device="cpu")

    assert caught.value.path == checkpoint / "config.json"
    assert problem in caught.value.problem


def test_encoder_with_a_decoder_is_loaded(tmp_path: Path) -> None:
    """With the head that generates text."""
    saved = tiny_module("t5")
    saved.save_pretrained(tmp_path)

    model = load_model(tmp_path, dtype="auto", device="cpu")

    assert type(model.module) is type(saved)
    assert torch.equal(model.module.state_dict()["shared.weight"], saved.state_dict()["shared.weight"])


def test_no_such_device(checkpoint: Path) -> None:
    """CUDA on a machine that has none."""
    with pytest.raises(DeviceError, match="found none"):
        load_model(checkpoint, dtype="auto", device="cuda")


def test_encoder_without_its_training_heads(tmp_path: Path) -> None:
    """An encoder saved with the head of its training is loaded without it, and gives vectors."""
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)

    model = load_model(tmp_path, dtype="auto", device="cpu")

    assert len(Encoder(model, pooling="cls").encode([[1, 2, 3]])[0]) == 16 * 4
