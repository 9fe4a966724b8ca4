"""Text to token ids and back, the way back token by token. Free of torch.

What a token decodes to depends on its neighbours: a character may span several tokens, and sentencepiece writes a
word's space with the word except at the start of a text. So new text is always the difference of two decoded windows
that begin at the same token, as in vLLM's and Text Generation Inference's detokenisers.
"""

from collections.abc import Sequence
from typing import Protocol

# What an incomplete or invalid UTF-8 sequence decodes to.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# The prompt's last tokens give the first token of the completion its neighbours.
NUM_CONTEXT_TOKENS = 6

# A UTF-8 sequence has at most four bytes and a token at least one: only the last three can be incomplete.
MAX_INCOMPLETE_TOKENS = 3


class Tokenizer(Protocol):
    """What the engine and the text models ask of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this number."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; a rendered chat template brings its special tokens itself, other text does not."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text, without special tokens; bytes that are not UTF-8 become U+FFFD."""


class Detokenizer:
    """Turns one request's completion into text while it grows; pieces joined equal the whole, decoded at once.

    Args:
        tokenizer: decodes.
        prompt_ids: what the completion continues.
        single_texts: what single tokens decode to, as far as anybody asked; completions may share it, which saves half
            of the decoding.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], single_texts: dict[int, str] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._single_texts = {} if single_texts is None else single_texts
        self._ids = list(prompt_ids[-NUM_CONTEXT_TOKENS:])

        # ids: [ seen before | window's text was handed out | not handed out yet ]
        #                    ^ _window_start               ^ _unread_start
        self._window_start = 0
        self._unread_start = len(self._ids)

    def push(self, token_id: int) -> str:
        """The text that one more token makes certain; empty while a character is incomplete."""
        self._ids.append(token_id)
        text = self._decode(len(self._ids))
        if not text.endswith(REPLACEMENT):
            return self._hand_out(text, until=len(self._ids))
        return self._hand_out_certain(text)

    def flush(self) -> str:
        """What is left when no more tokens come; an incomplete character becomes U+FFFD."""
        return self._hand_out(self._decode(len(self._ids)), until=len(self._ids))

    def _hand_out_certain(self, text: str) -> str:
        """Text before an ending that may be incomplete, so that a stream of invalid bytes is not held for ever."""
        for num_held in range(MAX_INCOMPLETE_TOKENS, 0, -1):
            until = len(self._ids) - num_held
            if len(self._ids) - self._unread_start <= MAX_INCOMPLETE_TOKENS or until <= self._unread_start:
                break
            certain = self._decode(until)
            if text.startswith(certain):
                return self._hand_out(certain, until=until)
        return ""

    def _hand_out(self, text: str, *, until: int) -> str:
        """The part of the window's text that is new; the window moves on behind it."""
        new = text[len(self._decode(self._unread_start)) :]
        if new:
            self._window_start, self._unread_start = self._unread_start, until
        return new

    def _decode(self, until: int) -> str:
        if until - self._window_start != 1:
            return self._tokenizer.decode(self._ids[self._window_start : until])
        token_id = self._ids[self._window_start]
        text = self._single_texts.get(token_id)
        if text is None:
            text = self._single_texts[token_id] = self._tokenizer.decode([token_id])
        return text
