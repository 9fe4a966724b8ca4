"""Tensors of a checkpoint, one at a time: the same as safetensors reads, and what does not fit is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.tensors import CheckpointTensors

TENSORS = {
    "wide": torch.randn(3, 5),
    "half": torch.randn(7).half(),
    "brain": torch.randn(2, 2, 2).bfloat16(),
    "scalar": torch.tensor(1.5),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def test_tensors_are_those_that_were_saved(checkpoint: Path) -> None:
    """All shapes and the three float types."""
    tensors = CheckpointTensors(checkpoint)

    tensors.expect(SHAPES)

    assert set(tensors.names) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors.dtype(name) is tensor.dtype
        assert torch.equal(tensors.read(name), tensor)


def test_ignored_tensors_may_be_there(checkpoint: Path) -> None:
    """Names that are known and not needed, whether they are there or not."""
    shapes = {name: shape for name, shape in SHAPES.items() if name != "half"}

    CheckpointTensors(checkpoint).expect(shapes, ignored=["half", "absent"])


def test_missing_tensors_are_named(checkpoint: Path) -> None:
    """At most three of them."""
    shapes = SHAPES | dict.fromkeys("dcba", (1,))

    with pytest.raises(WeightsError, match="lacks tensors `a`, `b`, `c` and 1 more"):
        CheckpointTensors(checkpoint).expect(shapes)


def test_a_file_that_shrinks_after_its_header_was_read(checkpoint: Path) -> None:
    """An error with the tensor's name, not the end of the process."""
    tensors = CheckpointTensors(checkpoint)
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])

    with pytest.raises(WeightsError, match="tensor `wide` was truncated while it was read"):
        tensors.read("wide")


def test_a_file_that_vanishes(checkpoint: Path) -> None:
    """Between header and tensor."""
    tensors = CheckpointTensors(checkpoint)
    (checkpoint / "model.safetensors").unlink()

    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        tensors.read("wide")
