"""Packed layers of transformers' classes: made once, then taken from a file in the same order."""

import time
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch

from flashgen_runtime.config import FolderSource, ModelConfig
from flashgen_runtime.engine import packers
from flashgen_runtime.engine.batch import build_batch
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.packers import MemoryPacker, PreparedPacker, SurgeryFile
from flashgen_runtime.engine.paths import load_causal_model
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.scheduler import Chunk
from flashgen_runtime.kernels.panels import WeightFormat
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.store import Store
from flashgen_runtime.messages import GenerationParams
from tests.runtime_models import sizes, tiny_module


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probe finds out is kept apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def access(tmp_path: Path) -> WeightAccess:
    return WeightAccess(store=Store(tmp_path / "store"))


def load(path: Path, access: WeightAccess | None, quantization: Any = None) -> CausalModel:
    config = ModelConfig(
        id="tiny",
        aliases=(),
        task="text-generation",
        source=FolderSource(folder=path.name),
        dtype="bfloat16",
        quantization=quantization,
        device="cpu",
        max_context=None,
        chat_template=None,
        generation_params=GenerationParams(),
        prefetch=(),
        speculative=None,
        weight_bytes=None,
        sequence_kv_bytes=None,
    )
    model = load_causal_model(path, config, sizes(), access=access)
    model.allocate_cache(8, 32)
    return model


def logits(model: CausalModel) -> torch.Tensor:
    """Of a prompt's last token."""
    request = Request(
        request_id="r",
        params=SamplingParams(max_tokens=1),
        token_ids=list(range(3, 23)),
        num_prompt_tokens=20,
        seed=0,
        eos_ids=frozenset(),
    )
    request.block_table = array("q", [1])
    with torch.inference_mode():
        return model.forward(build_batch([Chunk(request, 20)], block_size=32, device=torch.device("cpu"))).clone()


def prepared(access: WeightAccess, *, count: int = 1) -> list[Path]:
    """The files that are there, as soon as there are so many."""
    deadline = time.monotonic() + 20
    while len(found := list((access.store.root / "prepared").glob("*/*.safetensors"))) < count:
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.005)
    return found


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral"])
def test_the_second_load_takes_the_first_ones_layers(
    family: str, quantization: Any, tmp_path: Path, access: WeightAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear layers, fused ones and experts come from the file, nothing is packed, and no bit changes."""
    path = tmp_path / family
    tiny_module(family).save_pretrained(path)
    expected = logits(load(path, None, quantization))
    assert torch.equal(logits(load(path, access, quantization)), expected)
    (file,) = prepared(access)
    packed = packers._packed

    def only_for_comparisons(weights: Any, *arguments: Any) -> Any:
        assert weights[0].numel() <= 128, "layers of the model come from the file"
        return packed(weights, *arguments)

    monkeypatch.setattr(packers, "_packed", only_for_comparisons)

    again = load(path, access, quantization)

    assert torch.equal(logits(again), expected)
    assert file.name == f"bfloat16{'-int8' if quantization else ''}-panels.safetensors"


def test_a_file_of_other_layers_is_thrown_away(tmp_path: Path, access: WeightAccess) -> None:
    """Where surgery asks for another shape, layers are packed from the checkpoint, and the file goes."""
    (tmp_path / "checkpoint").mkdir()
    file = SurgeryFile(tmp_path / "checkpoint", dtype=torch.bfloat16, quantization=None, access=access)
    weight = torch.randn(64, 32).bfloat16()
    first = file.packer()
    assert isinstance(first, MemoryPacker)
    first.pack([weight], WeightFormat.BF16)
    file.keep(first)
    (written,) = prepared(access)

    second = file.packer()
    assert isinstance(second, PreparedPacker)
    taken = second.pack([weight], WeightFormat.BF16)
    assert torch.equal(taken.data, first.made[0].data)
    assert not second.is_stale
    third = file.packer()
    other = third.pack([weight[:32]], WeightFormat.BF16)
    file.keep(third)

    assert other.out_features == 32
    assert not written.exists()
