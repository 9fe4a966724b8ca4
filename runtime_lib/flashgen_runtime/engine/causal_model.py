"""What the engine runs: a language model on flat batches, whichever path it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from flashgen_runtime.engine.batch import Batch
from flashgen_runtime.engine.kv_cache import LayerShape
from flashgen_runtime.engine.request import Request

# "native": our own decoder. "paged": transformers' class over our paged attention. "plain": transformers' class with
# its own cache, one request per forward pass.
Path = Literal["native", "paged", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """How a model runs, for the log and `/v1/models`."""

    path: Path

    # Why it does not take a faster path; empty for "native".
    path_reason: str
    dtype: str

    # "int8", "int4", what a quantised checkpoint is ("awq int4 g128"), or empty.
    quantization: str
    kv_cache_dtype: str

    # Instruction set of our kernels, or "torch".
    kernels: str

    # Whether a request's logits are the same bits whatever else is in the batch.
    is_batch_invariant: bool


class CausalModel(Protocol):
    """A language model behind one call per step. Not thread-safe: the engine's thread owns it."""

    @property
    def description(self) -> ModelDescription:
        """How it runs."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    @property
    def device(self) -> torch.device:
        """Where batches and logits lie."""

    @property
    def layer_shapes(self) -> list[LayerShape]:
        """What each layer stores for one token."""

    @property
    def block_bytes_per_token(self) -> int:
        """Bytes of the KV cache for one token, all layers, scales included."""

    @property
    def can_chunk(self) -> bool:
        """Whether a prompt may be computed in several steps; else one forward pass takes all of it."""

    @property
    def can_share_blocks(self) -> bool:
        """Whether blocks of the KV cache may belong to several requests (prefix caching, beam search)."""

    def allocate_cache(self, num_blocks: int, block_size: int) -> None:
        """Makes the KV cache; called once, before the first `forward`; raises `ConfigError` for an unfit block size."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Stores the batch's keys and values; returns the logits of its sample rows, [R, V], float32."""

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks of all layers, source to target; before the step's `forward`."""

    def forget(self, request: Request) -> None:
        """The request's blocks are gone (finished, aborted or preempted): drops what is kept beside the cache."""

    def close(self) -> None:
        """Gives back weights and cache; there are no calls afterwards."""
