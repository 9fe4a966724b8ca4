"""The engine's interface: requests in, one step at a time, tokens out. Free of torch, so that fakes can stand in."""

from typing import NamedTuple, Protocol, runtime_checkable

from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.structured import TokenMask
from flashgen_runtime.messages import FinishReason, TokenLogprob


class EngineRequest(NamedTuple):
    """An encoded request, ready to be scheduled."""

    request_id: str

    # Never empty, and together with `params.max_tokens` within the context window.
    prompt_ids: list[int]
    params: SamplingParams

    # Says before each token which ones may come; `None` for all.
    token_mask: TokenMask | None = None


class EngineOutput(NamedTuple):
    """What one step brought one choice of a request."""

    request_id: str

    # New text; may be empty while a character or a stop string is incomplete.
    text: str
    finish_reason: FinishReason | None
    prompt_tokens: int

    # Of this choice so far.
    completion_tokens: int

    # Tokens of the prompt that were found in the prefix cache.
    cached_tokens: int = 0

    # Which of the request's choices this is, and how many are still open after it.
    index: int = 0  # type: ignore[assignment]  # hides a method of tuples that nobody needs here
    open_choices: int = 0

    # Of the new tokens, when the request asked; their text may come with a later output.
    logprobs: list[TokenLogprob] = []  # noqa: RUF012  # never changed


class EngineStats(NamedTuple):
    """What an engine holds now, and what it has done since its start."""

    running: int
    waiting: int
    blocks_used: int
    blocks_total: int

    # Forward passes.
    steps: int
    preemptions: int

    # Prompt tokens that were looked up in the prefix cache, and those found.
    prefix_queries: int = 0
    prefix_hits: int = 0


class Engine(Protocol):
    """Continuous batching behind three calls. Not thread-safe: one thread owns it."""

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs."""

    @property
    def max_context(self) -> int:
        """Longest prompt plus completion that fits, in tokens."""

    def add_request(self, request: EngineRequest) -> None:
        """Queues a request; raises `RequestError` if it can never fit."""

    def step(self) -> list[EngineOutput]:
        """Runs one forward pass; every choice with something new appears once, beams when their search is done."""

    def abort(self, request_id: str) -> None:
        """Ends a request and frees its blocks at once; an unknown id is ignored, since it may just have finished."""

    def close(self) -> None:
        """Gives back all memory, when no request is open; there are no calls afterwards."""


@runtime_checkable
class ReportsStats(Protocol):
    """What an engine may have besides."""

    @property
    def stats(self) -> EngineStats:
        """For metrics and tests."""
