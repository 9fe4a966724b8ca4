"""What our reader and transformers' classes give together equals what `from_pretrained` gives, in every family."""

import gc
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader import load_model, materialize
from flashgen_runtime.loader.disk import DiskFile
from flashgen_runtime.loader.memory import Region
from flashgen_runtime.loader.opening import open_weights
from flashgen_runtime.loader.quiet import quiet_transformers
from flashgen_runtime.loader.reader import open_mapped
from tests.runtime_models import _CONFIGS, tiny_config, tiny_module


def saved(family: str, folder: Path, **options: Any) -> Path:
    with quiet_transformers():
        tiny_module(family).save_pretrained(folder, **options)
    return folder


def by_transformers(path: Path, **options: Any) -> Any:
    auto_class: Any = AutoModelForSeq2SeqLM if path.name == "t5" else AutoModelForCausalLM
    with quiet_transformers():
        return auto_class.from_pretrained(path, **options).eval()


def values(module: Any) -> dict[str, torch.Tensor]:
    """All parameters and buffers, those that no file holds as well."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def assert_equal(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    found, expected = values(ours), values(theirs)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].device) == (tensor.dtype, tensor.device), name
        assert torch.equal(found[name], tensor), name
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert ours.config.to_dict() == theirs.config.to_dict()


@pytest.mark.parametrize("family", sorted(_CONFIGS))
def test_every_family_is_what_from_pretrained_gives(family: str, tmp_path: Path) -> None:
    """Tensors, ties, merged experts and computed buffers are the same bits, and so the logits, but for rounding.

    Sums are rounded differently where memory lies on other multiples.
    """
    path = saved(family, tmp_path / family)

    ours = load_model(path, dtype="auto", device="cpu").module
    theirs = by_transformers(path, dtype="auto")

    assert_equal(ours, theirs)
    ids = torch.tensor([[1, 5, 9, 2]])
    arguments = {"decoder_input_ids": ids} if family == "t5" else {}
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids, **arguments).logits, theirs(ids, **arguments).logits)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss", "t5"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_casting_on_the_way_is_what_from_pretrained_does(family: str, dtype: Any, tmp_path: Path) -> None:
    """Modules that a class keeps in float32 included."""
    path = saved(family, tmp_path / family)

    ours = load_model(path, dtype=dtype, device="cpu").module

    assert_equal(ours, by_transformers(path, dtype=getattr(torch, dtype)))


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    """Experts that are merged may lie in different files."""
    path = saved("qwen3_moe", tmp_path / "sharded", max_shard_size="60KB")
    assert len(list(path.glob("*.safetensors"))) > 1

    ours = load_model(path, dtype="auto", device="cpu").module

    assert_equal(ours, by_transformers(path, dtype="auto"))


def test_weights_of_the_store_are_mapped_and_not_copied(tmp_path: Path) -> None:
    """Parameters lie in the file's pages."""
    regions: list[Region] = []

    def open_file(path: Path) -> Any:
        file = open_mapped(path)
        regions.append(file.region)
        return file

    path = saved("llama", tmp_path / "llama")

    ours = load_model(path, dtype="auto", device="cpu", open_file=open_file)

    (region,) = regions
    for parameter in ours.module.parameters():
        assert region.address <= parameter.data_ptr() < region.address + region.size


def test_a_tensor_gives_its_memory_back_by_itself(tmp_path: Path) -> None:
    """A model whose layers are packed into another layout one by one does not hold the checkpoint beside it."""
    folder = tmp_path / "llama"
    config = tiny_config("llama")
    config.vocab_size = 1 << 16
    with quiet_transformers():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    ours: Any = load_model(folder, dtype="auto", device="cpu").module
    size = ours.lm_head.weight.nbytes
    before = resident_bytes()

    ours.lm_head.weight = torch.nn.Parameter(torch.zeros(1))
    gc.collect()

    assert before - resident_bytes() > 0.9 * size
    assert not torch.equal(ours.model.embed_tokens.weight[-1], torch.zeros(48))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_read_error_in_the_middle_is_the_load_s_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the file, and no model comes of it."""
    path = saved("llama", tmp_path / "llama")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(DiskFile, "read", fail)

    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read: Input/output error"):
        load_model(path, dtype="auto", device="cpu")


def test_where_it_would_not_be_equal_transformers_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says why, and our reader fetches nothing."""
    path = saved("llama", tmp_path / "llama")
    monkeypatch.setattr(materialize, "_not_ours", lambda *_: "weights in files of other names")
    monkeypatch.setattr(DiskFile, "__init__", None)

    with caplog.at_level(logging.INFO):
        ours = load_model(path, dtype="auto", device="cpu", open_file=open_weights).module

    assert_equal(ours, by_transformers(path, dtype="auto"))
    assert "transformers reads the weights" in caplog.text
