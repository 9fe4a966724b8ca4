"""A tokenizer with one token per character."""

from collections.abc import Sequence


class CharacterTokenizer:
    """A token's id is its character's code point; implements `engine.tokenizer.Tokenizer`."""

    vocab_size = 0x110000

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:  # noqa: ARG002  # there are none
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        # Surrogates are code points, but no characters: they cannot travel as UTF-8.
        return "".join(map(chr, token_ids)).encode("utf-8", "replace").decode("utf-8")
