"""How one request is decoded, complete and checked; merges the three sources that say so."""

from dataclasses import dataclass

from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import GenerationParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Complete settings of one request; validated when built."""

    max_tokens: int

    # 0 is greedy.
    temperature: float = 1.0
    top_p: float = 1.0

    # `None` keeps the whole vocabulary.
    top_k: int | None = None
    stop: tuple[str, ...] = ()

    # The same seed gives the same text alone and in any batch; `None` draws one.
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", "must be at least 1", self.max_tokens)
        _require(0 <= self.temperature <= 2, "temperature", "must be between 0 and 2", self.temperature)
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1", self.top_p)
        _require(self.top_k is None or self.top_k >= 1, "top_k", "must be at least 1", self.top_k)
        _require(len(self.stop) <= 4, "stop", "takes at most 4 strings", len(self.stop))
        _require(all(self.stop), "stop", "takes no empty string", "")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def merge_params(*sources: GenerationParams, room: int) -> SamplingParams:
    """Settings of one request; later sources win, field by field.

    Args:
        sources: the checkpoint's, the spec's and the request's parameters, in this order.
        room: tokens that the context window has left after the prompt; the default of `max_tokens`.

    Raises:
        RequestError: a value is out of range; names the field.
    """
    merged: dict[str, object] = {}
    for source in sources:
        for field in source.__struct_fields__:
            value = getattr(source, field)
            if value is not None:
                merged[field] = value
    merged.setdefault("max_tokens", room)
    return SamplingParams(**merged)  # type: ignore[arg-type]  # both types have the same fields; a test compares them


def _require(holds: bool, param: str, rule: str, found: object) -> None:  # noqa: FBT001  # reads as a sentence
    if not holds:
        raise RequestError(f"`{param}` {rule}, found {found!r}", kind="invalid_request", param=param)
