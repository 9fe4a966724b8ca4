"""Torch and our kernels share the processors."""

from collections.abc import Iterator

import pytest
import torch

from flashgen_runtime.engine.threads import share_processors
from flashgen_runtime.kernels.library import library


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    share_processors(threads, torch_computes=True)


@pytest.mark.parametrize(("torch_computes", "torch_threads"), [(True, 3), (False, 1)])
def test_torch_has_threads_where_it_computes(torch_computes: bool, torch_threads: int) -> None:
    """The kernels always have theirs."""
    share_processors(3, torch_computes=torch_computes)

    kernels = library()
    assert torch.get_num_threads() == torch_threads
    assert kernels is None or kernels.num_threads() == 3
