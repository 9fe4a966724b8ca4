"""The probe finds out which classes run on flat batches, says why not, and keeps what it found."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config, Qwen3MoeConfig
from transformers.models.llama.modeling_llama import LlamaAttention

from flashgen_runtime.engine import probe as probe_module
from flashgen_runtime.engine.probe import Finding, probe, small_configs
from flashgen_runtime.kernels.library import current_isa
from tests.runtime_models import PAGED_FAMILIES, tiny_config

FINE = Finding(is_invariant=current_isa() is not None)

PLAIN_FAMILIES = {
    "bloom": "attention outside of transformers' interface in 2 of 2 layers",
    "falcon": "attention outside of transformers' interface in 2 of 2 layers",
    "mamba": "attention outside of transformers' interface in 2 of 2 layers",
    "phi3_longrope": "rotary embeddings of type `longrope`, which depend on the whole batch",
    "t5": "an encoder beside the decoder",
}


@pytest.mark.parametrize("family", PAGED_FAMILIES)
def test_families_of_the_fast_path(family: str, tmp_path: Path) -> None:
    """They run on flat batches, and with our kernels, which give the same bits in any company."""
    assert probe(tiny_config(family), cache_folder=tmp_path) == FINE


@pytest.mark.parametrize("family", PLAIN_FAMILIES)
def test_families_of_the_plain_path(family: str, tmp_path: Path) -> None:
    """They do not, and the reason is one that a person understands."""
    assert probe(tiny_config(family), cache_folder=tmp_path).not_paged == PLAIN_FAMILIES[family]


def test_answer_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is computed; another configuration is another question."""
    probe(tiny_config("llama"), cache_folder=tmp_path)
    asked = []
    monkeypatch.setattr(probe_module, "_probe", lambda config: asked.append(config) or Finding("no"))

    assert probe(tiny_config("llama"), cache_folder=tmp_path) == FINE
    assert probe(tiny_config("qwen2"), cache_folder=tmp_path) == Finding("no")
    assert len(asked) == 1


def test_broken_answer_is_asked_again(tmp_path: Path) -> None:
    """A file that a crash cut off, or that another program wrote."""
    probe(tiny_config("llama"), cache_folder=tmp_path)
    (file,) = tmp_path.iterdir()

    for text in ("{", json.dumps({"something": "else"}), "[]"):
        file.write_text(text)
        assert probe(tiny_config("llama"), cache_folder=tmp_path) == FINE
        assert json.loads(file.read_text()) == asdict(FINE)


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """The answer is given all the same."""
    (tmp_path / "file").write_text("")

    assert probe(tiny_config("llama"), cache_folder=tmp_path / "file" / "below") == FINE


def test_default_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG specification says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    probe(tiny_config("t5"))

    assert len(list((tmp_path / "flashgen" / "probes").iterdir())) == 1


def test_class_that_mixes_along_the_row_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention comes through the interface, but a layer lets neighbours in the flat row see each other."""
    original = LlamaAttention.forward

    def forward(self: Any, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        return original(self, hidden_states + 0.1 * hidden_states.roll(1, dims=1), *arguments, **named)

    monkeypatch.setattr(LlamaAttention, "forward", forward)

    assert "logits on flat batches are off by" in probe(tiny_config("llama"), cache_folder=tmp_path).not_paged


@pytest.mark.skipif(current_isa() is None, reason="without kernels nothing is invariant")
def test_class_whose_bits_depend_on_the_batch_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right within rounding, but not the same bits beside another sequence."""
    original = LlamaAttention.forward

    def forward(self: Any, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        return original(self, hidden_states * (1 + 1e-6 * hidden_states.shape[1]), *arguments, **named)

    monkeypatch.setattr(LlamaAttention, "forward", forward)

    assert probe(tiny_config("llama"), cache_folder=tmp_path) == Finding()


def test_class_that_fails_on_flat_batches_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises becomes the reason."""
    original = LlamaAttention.forward

    def forward(self: Any, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if self.config._attn_implementation != "eager" and hidden_states.shape[1] > 1:
            raise ValueError("one sequence at a time")
        return original(self, hidden_states, *arguments, **named)

    monkeypatch.setattr(LlamaAttention, "forward", forward)

    finding = probe(tiny_config("llama"), cache_folder=tmp_path)

    assert finding.not_paged == "fails on flat batches: one sequence at a time"


BIG: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def test_small_model_of_a_big_one() -> None:
    """Few heads of the same size, and nothing of the original changes."""
    config = LlamaConfig(**BIG, num_hidden_layers=48)

    small = next(small_configs(config))

    assert (small.num_hidden_layers, small.vocab_size) == (2, 128)
    assert (small.num_attention_heads, small.num_key_value_heads, small.head_dim) == (4, 1, 128)
    assert (small.hidden_size, small.intermediate_size) == (512, 96)
    assert (config.num_hidden_layers, config.hidden_size) == (48, 4096)


def test_each_kind_of_layer_is_kept() -> None:
    """Of a pattern of six the two kinds; of sparse layers that come every third, one."""
    gemma = next(small_configs(Gemma3TextConfig(num_hidden_layers=26)))
    sparse = next(small_configs(Qwen3MoeConfig(num_hidden_layers=24, decoder_sparse_step=3)))

    assert gemma.layer_types == ["sliding_attention", "full_attention"]
    assert sparse.num_hidden_layers == 4


def test_big_model_is_probed_quickly(tmp_path: Path) -> None:
    """An 8-billion-parameter configuration with a family's real sizes."""
    config = Phi3Config(**{**BIG, "num_hidden_layers": 32, "pad_token_id": None, "sliding_window": 2048})

    assert probe(config, cache_folder=tmp_path) == FINE
