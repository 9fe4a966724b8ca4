"""Token counts of an answer."""

from collections.abc import Iterable

from pydantic import BaseModel

from flashgen_runtime.server.hooks import Generation


class PromptTokensDetails(BaseModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


def usage_of(generations: Iterable[Generation]) -> dict[str, object]:
    """The counts of one answer, as `Usage` describes them; the choices of one prompt share its tokens."""
    prompt_tokens = completion_tokens = cached_tokens = 0
    for generation in generations:
        completion_tokens += generation.completion_tokens
        if generation.choice == 0:
            prompt_tokens += generation.prompt_tokens
            cached_tokens += generation.cached_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
