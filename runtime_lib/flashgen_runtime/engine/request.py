"""The state of one request while the engine holds it. Free of torch.

A request with several choices becomes one `Request` per choice. Under beam search there is one that stands for the
whole search and is computed up to the end of the prompt, then one per beam (see `engine.beam_search`).
"""

from array import array
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.structured import TokenMask
from flashgen_runtime.messages import FinishReason

if TYPE_CHECKING:  # It imports this module.
    from flashgen_runtime.engine.beam_search import BeamSearch


class RequestState(Enum):
    """Where a request is on its way; a preempted request waits again."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One request, choice or beam; the scheduler owns it and alone changes it."""

    request_id: str
    params: SamplingParams

    # The prompt, then the completion as it grows; nothing is ever taken away.
    token_ids: list[int]
    num_prompt_tokens: int

    # 64 bits; the caller's, or drawn; each choice has its own.
    seed: int

    # Token ids that end the completion; they count as tokens and have no text.
    eos_ids: frozenset[int]

    # Which of the request's choices.
    index: int = 0
    token_mask: TokenMask | None = None

    # Requests with equal salts share blocks of equal tokens.
    cache_salt: bytes = b""

    # What the caller expects the completion to be, and what the current step verifies behind `token_ids`.
    predicted_ids: list[int] = field(default_factory=list)
    proposed_ids: list[int] = field(default_factory=list)

    # The request for which this one verifies another guess, for one step.
    branch_of: "Request | None" = None

    state: RequestState = RequestState.WAITING
    finish_reason: FinishReason | None = None

    # Tokens whose keys and values lie in the KV cache.
    num_computed_tokens: int = 0

    # Blocks of the KV cache, in the order of the tokens; an array, so that batches copy it as memory.
    block_table: "array[int]" = field(default_factory=lambda: array("q"))

    # What the prefix cache calls the contents of the full blocks, as far as it was asked, and how many blocks at the
    # table's beginning it can find.
    block_keys: list[bytes] = field(default_factory=list)
    num_named_blocks: int = 0

    # Tokens of the prompt that were found in the prefix cache when the request first started; `None` before.
    num_cached_tokens: int | None = None

    # Shared by the request that stands for a beam search and its beams.
    beam_search: "BeamSearch | None" = None

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether only its newest token is missing in the KV cache."""
        return self.num_uncomputed_tokens == 1

    @property
    def is_finished(self) -> bool:
        return self.state is RequestState.FINISHED
