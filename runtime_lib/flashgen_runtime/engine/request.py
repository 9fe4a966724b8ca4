"""The state of one request while the engine holds it. Free of torch."""

from array import array
from dataclasses import dataclass, field
from enum import Enum, auto

from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.messages import FinishReason


class RequestState(Enum):
    """Where a request is on its way; a preempted request waits again."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One request; the scheduler owns it and alone changes it."""

    request_id: str
    params: SamplingParams

    # The prompt, then the completion as it grows.
    token_ids: list[int]
    num_prompt_tokens: int

    # 64 bits; the caller's, or drawn.
    seed: int

    # Token ids that end the completion; they count as tokens and have no text.
    eos_ids: frozenset[int]

    state: RequestState = RequestState.WAITING
    finish_reason: FinishReason | None = None

    # Tokens whose keys and values lie in the KV cache.
    num_computed_tokens: int = 0

    # Blocks of the KV cache, in the order of the tokens; an array, so that batches copy it as memory.
    block_table: "array[int]" = field(default_factory=lambda: array("q"))

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
