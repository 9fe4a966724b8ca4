"""Which path a checkpoint takes, and what is refused on it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flashgen_runtime.config import EngineConfig, FolderSource, ModelConfig
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.paths import load_causal_model, position_limit
from flashgen_runtime.engine.probe import Finding
from flashgen_runtime.errors import ConfigError, WeightsError
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.messages import GenerationParams
from tests.runtime_models import NATIVE_FAMILIES, sizes, tiny_config, tiny_module


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probe finds out is kept apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(family: str, folder: Path, *, engine: EngineConfig | None = None, **fields: Any) -> CausalModel:
    path = folder / family
    if not path.exists():
        tiny_module(family).save_pretrained(path)
    settings: dict[str, Any] = {
        "id": "tiny",
        "aliases": (),
        "task": "text-generation",
        "source": FolderSource(folder=family),
        "dtype": "auto",
        "quantization": None,
        "device": "cpu",
        "max_context": None,
        "chat_template": None,
        "generation_params": GenerationParams(),
        "prefetch": (),
        "speculative": None,
        "weight_bytes": None,
        "sequence_kv_bytes": None,
    }
    return load_causal_model(path, ModelConfig(**{**settings, **fields}), engine or sizes())


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_native(family: str, tmp_path: Path) -> None:
    """Families of our own decoder."""
    model = load(family, tmp_path)

    assert (model.description.path, model.description.path_reason) == ("native", "")
    assert position_limit(tmp_path / family, model) == 512


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2", "mixtral"])
def test_paged(family: str, tmp_path: Path) -> None:
    """All else that runs on flat batches, with the reason why it is not native."""
    model = load(family, tmp_path, quantization="int8")

    assert (model.description.path, model.description.quantization) == ("paged", "int8")
    assert "the native decoder does not run models of type" in model.description.path_reason
    assert model.description.kernels == current_isa()


@pytest.mark.parametrize("family", ["bloom", "t5"])
def test_plain(family: str, tmp_path: Path) -> None:
    """The rest, with the reason why it is not paged."""
    model = load(family, tmp_path)

    assert model.description.path == "plain"
    assert "does not run on flat batches" in model.description.path_reason


def test_kernels_that_do_not_fit_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the probe finds that they change the result, torch computes, and `deterministic` is refused."""
    monkeypatch.setattr("flashgen_runtime.engine.probe.probe", lambda _config: Finding(not_replaced="wrong"))

    model = load("gpt_neox", tmp_path)

    assert (model.description.path, model.description.kernels) == ("paged", "torch")
    with pytest.raises(ConfigError, match="cannot be deterministic: on the path `paged` with kernels `torch`"):
        load("gpt_neox", tmp_path, engine=sizes(deterministic=True))
    with pytest.raises(ConfigError, match="`int4` needs kernels"):
        load("gpt_neox", tmp_path, quantization="int4")


@pytest.mark.parametrize("family", ["llama", "mixtral", "bloom"])
def test_deterministic(family: str, tmp_path: Path) -> None:
    """On kernels, and where a request is alone in its forward pass."""
    assert load(family, tmp_path, engine=sizes(deterministic=True)).description.is_batch_invariant


def test_int8_cache_on_each_path(tmp_path: Path) -> None:
    """Ours can; a class's own cache cannot."""
    limits = sizes(kv_cache_dtype="int8")

    assert load("llama", tmp_path, engine=limits).description.kv_cache_dtype == "int8"
    assert load("gemma2", tmp_path, engine=limits).description.kv_cache_dtype == "int8"
    with pytest.raises(ConfigError, match="`int8` needs a paged model"):
        load("bloom", tmp_path, engine=limits)


def test_dtype_is_what_is_asked_for(tmp_path: Path) -> None:
    """Of weights and cache; activations do not show."""
    description = load("gemma2", tmp_path, dtype="bfloat16").description

    assert description.dtype == description.kv_cache_dtype == "bfloat16"


def test_block_that_is_not_whole_tiles_is_refused(tmp_path: Path) -> None:
    """The kernels' cache lies in tiles of 32 tokens."""
    with pytest.raises(ConfigError, match="multiple of 32"):
        load("gemma2", tmp_path).allocate_cache(4, 16)


def test_heads_that_kernels_do_not_take(tmp_path: Path) -> None:
    """Keys and values lie in torch's cache then, and int8 is refused."""
    config = tiny_config("gpt_neox")
    config.hidden_size = 40
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt_neox")

    description = load("gpt_neox", tmp_path).description

    assert (description.path, description.is_batch_invariant) == ("paged", False)
    with pytest.raises(ConfigError, match="heads that the kernels take"):
        load("gpt_neox", tmp_path, engine=sizes(kv_cache_dtype="int8"))


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    """Whatever the path."""
    for family in ("llama", "gemma2", "bloom"):
        load(family, tmp_path)
        file = tmp_path / family / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

        with pytest.raises(WeightsError, match="truncated"):
            load(family, tmp_path)
