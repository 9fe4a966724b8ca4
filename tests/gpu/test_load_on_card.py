"""Weights on a real card; and the script that measures there, with this machine's memory in the card's place."""

from pathlib import Path

import pytest
import torch

from flashgen_runtime.loader import load_dict, save_dict
from tests.gpu.load_and_swap import Machine, measure
from tests.runtime.test_cuda import LazyCard

ON_A_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here")


@ON_A_CARD
def test_tensors_arrive_on_the_card_bit_for_bit(tmp_path: Path) -> None:
    """Every dtype, several stripes, odd sizes."""
    state = {
        "large": torch.randint(-(1 << 15), 1 << 15, (40 << 20,), dtype=torch.int16),
        "bfloat16": torch.randn(333, 77).to(torch.bfloat16),
        "bool": torch.tensor([True, False, True]),
        "fp8": torch.randn(1001).to(torch.float8_e4m3fn),
        "empty": torch.zeros(0, 3),
    }
    save_dict(state, tmp_path / "file.safetensors")

    found = load_dict(tmp_path / "file.safetensors", "cuda")

    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].device.type == "cuda"
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].cpu().view(torch.uint8), tensor.view(torch.uint8)), name


@ON_A_CARD
def test_loading_takes_no_more_of_the_card_than_the_file(tmp_path: Path) -> None:
    """And gives it back with the tensors."""
    size = 256 << 20
    save_dict({"a": torch.zeros(size, dtype=torch.uint8)}, tmp_path / "file.safetensors")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    found = load_dict(tmp_path / "file.safetensors", "cuda")

    assert torch.cuda.max_memory_allocated() - before < size + (4 << 20)
    del found
    assert torch.cuda.memory_allocated() == before


def test_the_script_measures_what_it_says(tmp_path: Path) -> None:
    """It loads, swaps and compares; its shares are parts of its limits."""
    machine = Machine(torch.device("cpu"), LazyCard, lambda: None)

    found = measure(machine, tmp_path, [0.02, 0.03], repeats=1)

    assert {"copy GB/s", "load 0.02 cold s", "load 0.03 hot s", "swap p50 s"} < found.keys()
    assert all(value > 0 for value in found.values())
