"""Weights that are never loaded are refused with the command that converts them, and the command works."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.checkpoint import read_headers
from flashgen_runtime.loader.foreign_formats import foreign_problem
from tests.runtime_models import tiny_module


@pytest.mark.slow
def test_the_command_for_pickled_weights_converts_them(tmp_path: Path) -> None:
    """What the error says is run as it stands; afterwards the checkpoint has its tensors as safetensors."""
    folder = tmp_path / "it's mine"
    module = tiny_module("llama")
    module.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(module.state_dict(), folder / "pytorch_model.bin")

    with pytest.raises(WeightsError, match="never loaded") as caught:
        read_headers(folder)
    _, code = caught.value.problem.split("convert it: python -c ")
    subprocess.run([sys.executable, "-c", *shlex.split(code)], check=True, capture_output=True)

    assert read_headers(folder)[0].tensors.keys() == module.state_dict().keys()


@pytest.mark.parametrize(
    ("config", "is_encoder", "auto_class"),
    [({}, False, "AutoModelForCausalLM"), ({}, True, "AutoModel"), ({"is_encoder_decoder": True}, False, "Seq2Seq")],
)
def test_a_gguf_file_is_converted_by_the_class_of_its_model(
    tmp_path: Path, config: dict[str, object], is_encoder: bool, auto_class: str
) -> None:
    """The command names the file and a class that keeps every tensor."""
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")

    problem = foreign_problem(tmp_path, config, is_encoder=is_encoder)

    assert problem is not None
    assert "gguf_file='model-q4.gguf'" in problem
    assert auto_class in problem


def test_a_folder_without_weights_has_no_such_problem(tmp_path: Path) -> None:
    """Then it is said what should be there."""
    assert foreign_problem(tmp_path, {}, is_encoder=False) is None
    with pytest.raises(WeightsError, match=r"has neither `model\.safetensors` nor"):
        read_headers(tmp_path)
