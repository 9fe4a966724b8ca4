"""Our own encoder against transformers' BertModel, on tiny random checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import BertConfig, BertForMaskedLM, BertModel

from flashgen_runtime.engine.encoder_paths import TextEncoder, load_encoder
from flashgen_runtime.engine.native_config import UnsupportedConfigError
from flashgen_runtime.engine.native_encoder import NativeEncoder, load_native_encoder
from flashgen_runtime.engine.pooling import Pooling
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.kernels.library import current_isa

LENGTHS = (5, 1, 64, 33, 32, 100)
SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}


def save(folder: Path, **fields: Any) -> Any:
    """A random BertModel, saved; norms and biases are random too."""
    torch.manual_seed(0)
    module = BertModel(BertConfig(**{**SIZES, **fields}), add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    module.save_pretrained(folder)
    return module.requires_grad_(requires_grad=False)


def load(folder: Path, **options: Any) -> NativeEncoder:
    settings = {"dtype": "auto", "quantization": None, "pooling": "mean", "max_num_batched_tokens": 256, **options}
    return load_native_encoder(folder, **settings)


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, SIZES["vocab_size"], (length,), generator=generator).tolist() for length in LENGTHS]


def vectors(encoder: TextEncoder, sequences: Sequence[list[int]]) -> torch.Tensor:
    return torch.tensor(np.stack([np.frombuffer(each, dtype="<f4") for each in encoder.encode(sequences)]))


def reference(module: Any, *, pooling: Pooling) -> torch.Tensor:
    hidden = [module(torch.tensor([ids])).last_hidden_state[0] for ids in texts()]
    return normalize(torch.stack([each.mean(0) if pooling == "mean" else each[0] for each in hidden]), dim=-1)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu"])
def test_vectors_equal_those_of_transformers(hidden_act: str, pooling: Pooling, tmp_path: Path) -> None:
    """In float32, texts of mixed lengths in one flat batch."""
    module = save(tmp_path, hidden_act=hidden_act)

    found = vectors(load(tmp_path, pooling=pooling), texts())

    assert (found - reference(module, pooling=pooling)).abs().max() < 1e-5


@pytest.mark.parametrize(("options", "least"), [({"dtype": "bfloat16"}, 0.9999), ({"quantization": "int8"}, 0.999)])
def test_reduced_precision_points_in_the_same_direction(options: dict[str, str], least: float, tmp_path: Path) -> None:
    """Cosine to the float32 vectors."""
    module = save(tmp_path)

    found = vectors(load(tmp_path, **options), texts())

    assert (found * reference(module, pooling="mean")).sum(dim=1).min() > least


@pytest.mark.skipif(current_isa() is None, reason="torch's matrix products are not batch-invariant")
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"quantization": "int8"}])
def test_a_text_has_the_same_vector_in_every_batch(options: dict[str, str], tmp_path: Path) -> None:
    """The same bits alone and beside others, in any order."""
    save(tmp_path)
    encoder = load(tmp_path, **options)

    together = encoder.encode(texts())

    assert encoder.encode(texts()[::-1]) == together[::-1]
    assert [encoder.encode([ids])[0] for ids in texts()] == together


def test_a_text_may_be_longer_than_the_budget(tmp_path: Path) -> None:
    """As long as there are positions."""
    module = save(tmp_path)

    encoder = load(tmp_path, max_num_batched_tokens=8)

    assert encoder.num_positions == 128
    assert (vectors(encoder, texts()[5:]) - reference(module, pooling="mean")[5]).abs().max() < 1e-5


def test_checkpoints_with_the_head_of_their_training(tmp_path: Path) -> None:
    """The encoder stands below `bert.`, the head is ignored, and so are the numbers of the positions."""
    module = BertForMaskedLM(BertConfig(**SIZES)).eval().requires_grad_(requires_grad=False)
    module.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "bert.embeddings.position_ids": torch.arange(128)[None]}, file)

    found = vectors(load(tmp_path), texts())

    assert (found - reference(module.bert, pooling="mean")).abs().max() < 1e-5


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    """A tensor of the architecture that the file lacks."""
    save(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, file)

    with pytest.raises(WeightsError, match=r"lacks tensor `encoder\.layer\.1\.output\.dense\.bias`"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": "roberta"}, "models of type `roberta`"),
        ({"position_embedding_type": "relative_key"}, "positions of type `relative_key`"),
        ({"is_decoder": True}, "decoders of the BERT family"),
        ({"hidden_act": "mish"}, "the activation `mish`"),
        ({"num_attention_heads": 48}, "48 heads over 96 values"),
        ({"quantization_config": {}}, "quantised checkpoints"),
    ],
)
def test_what_is_not_run_natively_has_a_reason(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Everything that the encoder would have to ignore."""
    save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    with pytest.raises(UnsupportedConfigError, match=reason):
        load(tmp_path)


def test_old_names_of_norms_are_not_run_natively(tmp_path: Path) -> None:
    """transformers renames them as it loads."""
    save(tmp_path)
    file = tmp_path / "model.safetensors"
    renamed = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): each for name, each in load_file(file).items()}
    save_file(renamed, file)

    with pytest.raises(UnsupportedConfigError, match="gamma and beta"):
        load(tmp_path)


def test_what_is_not_run_natively_is_run_by_transformers(tmp_path: Path) -> None:
    """The same vectors, and a reason that callers can read."""
    module = save(tmp_path)
    config: Any = SimpleNamespace(id="tiny", dtype="auto", device="cpu", quantization=None)
    engine: Any = SimpleNamespace(max_num_batched_tokens=256)
    native = load_encoder(tmp_path, config, engine)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "position_embedding_type": "none of ours"}))

    other = load_encoder(tmp_path, config, engine)

    reason = "the native encoder does not run positions of type `none of ours`"
    if current_isa() is not None:
        assert native.description.path == "native"
        assert (other.description.path, other.description.path_reason) == ("plain", reason)
    assert (native.vocab_size, native.num_positions) == (other.vocab_size, other.num_positions) == (200, 128)
    for encoder in (native, other):
        assert (vectors(encoder, texts()) - reference(module, pooling="mean")).abs().max() < 1e-5
