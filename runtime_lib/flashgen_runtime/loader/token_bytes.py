"""What single tokens stand for, in bytes: joined, they are the text, also where a character spans several tokens.

Decoding a token alone does not give that: a part of a character becomes U+FFFD, and sentencepiece drops the space at
the start of a text.
"""

import re
from typing import Any

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _bytes_by_character() -> dict[str, int]:
    """How byte-level vocabularies write bytes, as in GPT-2: printable ones as they are, others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _bytes_by_character()
_BYTE_LEVEL_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"


class TokenBytes:
    """The bytes of tokens of one tokenizer.

    Args:
        tokenizer: transformers' tokenizer or a `BackendTokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._added_ids = frozenset(tokenizer.added_tokens_decoder)

        # How the vocabulary writes a space tells how it writes everything.
        pieces = "".join(tokenizer.tokenize("a a"))
        self._is_byte_level = _BYTE_LEVEL_SPACE in pieces
        self._is_sentencepiece = _SPACE in pieces

    def of(self, token_id: int) -> bytes | None:
        """The token's part of a text, nothing for a special token; `None` where the vocabulary does not tell."""
        if token_id in self._special_ids:
            return b""
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:
            return None
        if token_id in self._added_ids:
            return str(piece).encode()
        if self._is_byte_level:
            return bytes(map(_BYTES.__getitem__, piece)) if all(character in _BYTES for character in piece) else None
        if not self._is_sentencepiece:
            return None
        if match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return str(piece).replace(_SPACE, " ").encode()
