"""The threads that compute: torch has a pool, our kernels have one, and there are so many processors only once."""

import torch

from flashgen_runtime.kernels.library import set_num_threads


def share_processors(threads: int, *, torch_computes: bool) -> None:
    """Gives the kernels `threads` threads, and torch as many if it computes, else one: two busy pools delay each other.

    A thread takes torch's number at its first tensor operation and keeps it.
    """
    set_num_threads(threads)
    torch.set_num_threads(threads if torch_computes else 1)
