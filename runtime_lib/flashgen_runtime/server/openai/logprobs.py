"""Log probabilities in OpenAI's two shapes: objects by token for chats, parallel lists for completions."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from flashgen_runtime.messages import TokenLogprob

# In the place of minus infinity, which JSON does not have; as in vLLM.
LEAST_LOGPROB = -9999.0

MAX_TOP_LOGPROBS = 20


class TopLogprob(BaseModel):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: list[int] | None = Field(description="The token's UTF-8; null where that is not known.")


class ChatTokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of a message, token by token."""

    content: list[ChatTokenLogprob] | None
    refusal: None = None


class CompletionLogprobs(BaseModel):
    """Of a text: four lists with an entry for each token."""

    text_offset: list[int] = Field(description="Where each token begins in the text, in characters.")
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float]] | None


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """As `ChatLogprobs` describes it."""
    content = [
        {
            **_entry(token.token, token.logprob, token.token_bytes),
            "top_logprobs": [_entry(text, logprob, None) for text, _, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[TokenLogprob], *, offset: int) -> dict[str, Any]:
    """As `CompletionLogprobs` describes it; the first token begins at `offset`."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "text_offset": offsets,
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "tokens": [token.token for token in tokens],
        "top_logprobs": [_top(token) for token in tokens],
    }


def _entry(text: str, logprob: float, token_bytes: bytes | None) -> dict[str, Any]:
    if token_bytes is None and "\ufffd" not in text:
        token_bytes = text.encode()
    return {"token": text, "logprob": _finite(logprob), "bytes": None if token_bytes is None else list(token_bytes)}


def _top(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and, wherever it ranks, the one that was chosen."""
    return {**{text: _finite(logprob) for text, _, logprob in token.top}, token.token: _finite(token.logprob)}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
