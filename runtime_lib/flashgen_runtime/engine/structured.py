"""The hook for structured output: before each token of a request, a grammar says which may come. Free of torch."""

from collections.abc import Iterable
from typing import Protocol


class TokenMask(Protocol):
    """The state of one grammar in one completion.

    This is the form that grammar libraries have: llguidance's `LLMatcher` (`compute_bitmask`, `consume_token`,
    `deep_copy`) and xgrammar's `GrammarMatcher` (`fill_next_token_bitmask`, `accept_token`, `fork`).
    """

    def bitmask(self) -> bytes | bytearray | memoryview:
        """Words of 32 bits, little-endian: token i may come next if bit i % 32 of word i // 32 is set.

        ceil(V / 32) words, or fewer if the grammar's vocabulary is smaller than the model's: tokens beyond never come.
        Without any bit set nothing may follow, so the completion ends.
        """

    def accept(self, token_id: int) -> None:
        """The token came; it is one that the mask allowed."""

    def copy(self) -> "TokenMask":
        """The same state, for another completion with the same beginning: a choice or a beam."""


def allowed_words(mask: TokenMask, *, vocab_size: int, eos_ids: Iterable[int]) -> bytearray:
    """The mask's words for a vocabulary of this size; where it allows nothing, the end-of-sequence ids."""
    words = bytearray((vocab_size + 31) // 32 * 4)
    given = memoryview(mask.bitmask()).cast("B")[: len(words)]
    words[: len(given)] = given
    if words.count(0) == len(words):
        for token_id in eos_ids:
            if token_id < vocab_size:
                words[token_id // 8] |= 1 << token_id % 8
    return words
