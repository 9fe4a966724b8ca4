"""Tokens become text piece by piece, and the pieces joined are the text."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashgen_runtime.engine.stop_strings import StopStrings
from flashgen_runtime.engine.tokenizer import REPLACEMENT, Detokenizer
from tests.runtime_models import ByteTokenizer


class PieceTokenizer:
    """As sentencepiece: every word brings its space, which the first word of a text loses."""

    vocab_size = 4
    words = ("▁a", "▁word", "s", "▁more")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.words[token_id] for token_id in token_ids).replace("▁", " ").removeprefix(" ")


class MultibyteTokenizer:
    """Tokens of one to three bytes, cut without regard to characters, as byte-level BPE does."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.vocab_size = len(pieces)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(self.pieces[token_id] for token_id in token_ids).decode(errors="replace")


def pushed(detokenizer: Detokenizer, token_ids: Sequence[int]) -> list[str]:
    return [*map(detokenizer.push, token_ids), detokenizer.flush()]


@given(st.text(min_size=1, max_size=30))
def test_no_piece_splits_a_character(text: str) -> None:
    """Byte by byte, every piece is whole characters and nothing is lost."""
    pieces = pushed(Detokenizer(ByteTokenizer(), []), text.encode())

    assert "".join(pieces) == text
    assert all(REPLACEMENT not in piece for piece in pieces) or REPLACEMENT in text


@given(st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=40))
def test_bytes_that_are_no_text_equal_the_whole_decoded_at_once(pieces: list[bytes]) -> None:
    """Whatever bytes a model writes, the pieces joined are what decoding them at once gives."""
    tokenizer = MultibyteTokenizer(pieces)

    texts = pushed(Detokenizer(tokenizer, []), range(len(pieces)))

    assert "".join(texts) == b"".join(pieces).decode(errors="replace")


def test_invalid_bytes_are_not_held_for_ever() -> None:
    """A model that writes nothing but invalid bytes streams replacement characters, a few tokens late."""
    texts = pushed(Detokenizer(ByteTokenizer(), []), b"\xff" * 20)

    assert texts[:4] == ["", "", "", REPLACEMENT]
    assert "".join(texts) == REPLACEMENT * 20


def test_character_waits_for_its_last_byte() -> None:
    """A character of three tokens comes with the third."""
    texts = pushed(Detokenizer(ByteTokenizer(), [65]), "€!".encode())

    assert texts == ["", "", "€", "!", ""]


def test_incomplete_end_becomes_a_replacement_character() -> None:
    """A completion that ends inside a character shows that."""
    texts = pushed(Detokenizer(ByteTokenizer(), []), "€".encode()[:2])

    assert "".join(texts) == REPLACEMENT


def test_first_word_keeps_its_space_behind_a_prompt() -> None:
    """The prompt's end is the first word's neighbour: its space is text of the completion."""
    texts = pushed(Detokenizer(PieceTokenizer(), [0]), [1, 2, 3])

    assert texts == [" word", "s", " more", ""]


@pytest.mark.parametrize("cut", range(1, 9))
def test_stop_string_over_a_border(cut: int) -> None:
    """Wherever the text is cut, the stop string and what follows it are dropped."""
    text = "ab STOP c"
    stop_strings = StopStrings(("STOP",))

    first = stop_strings.push(text[:cut])
    second = "" if first.is_stopped else stop_strings.push(text[cut:]).text

    assert first.text + second == "ab "


def test_possible_prefix_is_held_back_and_handed_out_later() -> None:
    """What may become a stop string waits; when it does not, it comes with the next piece, or at the end."""
    stop_strings = StopStrings(("\n\n", "END"))

    assert stop_strings.push("a\n").text == "a"
    assert stop_strings.push("b E").text == "\nb "
    assert stop_strings.flush() == "E"


@given(
    text=st.text(alphabet="abc", max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.sets(st.integers(min_value=0, max_value=12)),
)
def test_result_does_not_depend_on_the_cuts(text: str, stops: list[str], cuts: set[int]) -> None:
    """The same text in any pieces stops at the same place."""

    def through(pieces: list[str]) -> str:
        stop_strings = StopStrings(tuple(stops))
        passed = ""
        for piece in pieces:
            scan = stop_strings.push(piece)
            passed += scan.text
            if scan.is_stopped:
                return passed
        return passed + stop_strings.flush()

    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(borders)]

    assert through(pieces) == through(list(text))
