"""What `bench_load` computes from its runs. Nothing is measured."""

import pytest
import torch

from benchmarks.bench_load import OURS_MAP, SAFETENSORS, Run, _aims, _check_equal
from benchmarks.load_models import nearest_shape
from benchmarks.load_run import digest


def test_ratios_are_made_within_rounds() -> None:
    """What slows the machine down in one round slows both loaders."""
    runs = {
        (SAFETENSORS, "hot"): [Run(seconds, 0.0, "") for seconds in (6.0, 12.0, 24.0)],
        (OURS_MAP, "hot"): [Run(seconds, 0.0, "") for seconds in (1.0, 2.0, 12.0)],
    }

    assert [(aim.id, aim.value, aim.met) for aim in _aims(nearest_shape(1.2), runs)] == [
        ("load-hot-map-1.19", 6.0, True)
    ]


def test_loaders_that_disagree_fail_the_benchmark() -> None:
    """A loader that is fast because it gives something else is no loader."""
    with pytest.raises(SystemExit, match="disagree"):
        _check_equal({"ours": Run(1.0, 1.0, "a"), "theirs": Run(1.0, 1.0, "b")})


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([2, 1], dtype=torch.int64)},
        {"a": torch.tensor([[1, 2]], dtype=torch.int64)},
        {"a": torch.tensor([1, 2], dtype=torch.int64).view(torch.float64)},
        {"b": torch.tensor([1, 2], dtype=torch.int64)},
    ],
    ids=["order", "shape", "dtype", "name"],
)
def test_the_digest_tells_tensors_apart(other: dict[str, torch.Tensor]) -> None:
    """By values and their order, shape, dtype and name."""
    assert digest({"a": torch.tensor([1, 2], dtype=torch.int64)}) != digest(other)
