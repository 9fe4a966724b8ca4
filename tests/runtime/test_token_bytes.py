"""What single tokens stand for: vocabularies of both kinds, whose tokens joined are the text."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flashgen_runtime.loader.token_bytes import TokenBytes

CODER = Path(__file__).parents[2] / "samples" / "models" / "stdlib-coder" / "tokenizer.json"
TEXT = "def żółw(x): return '🐢'\n\tpass  #"


def sentencepiece() -> PreTrainedTokenizerFast:
    """Words begin with their space, and what is no word is bytes."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "b"]
    vocab = {word: place for place, word in enumerate(words)}
    model = models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def byte_level() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(CODER), eos_token="<|endoftext|>")


@pytest.mark.parametrize("tokenizer", [byte_level(), sentencepiece()], ids=["byte-level", "sentencepiece"])
def test_bytes_of_tokens_are_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """Spaces, line breaks, and characters of several tokens."""
    tokens = TokenBytes(tokenizer)

    for text in (TEXT, " a a", "a b ab"):
        token_ids = tokenizer.encode(text)

        assert b"".join(tokens.of(token_id) or b"" for token_id in token_ids) == text.encode()


@pytest.mark.parametrize("tokenizer", [byte_level(), sentencepiece()], ids=["byte-level", "sentencepiece"])
def test_special_tokens_stand_for_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    """As in decoded text; a token that was added to the vocabulary stands for itself."""
    tokenizer.add_tokens(["<tool>"])
    tokens = TokenBytes(tokenizer)

    assert tokens.of(tokenizer.eos_token_id) == b""
    assert tokens.of(tokenizer.convert_tokens_to_ids("<tool>")) == b"<tool>"
    assert tokens.of(10**6) is None


def test_other_vocabularies_do_not_tell() -> None:
    """Pieces of words that say nothing about spaces."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    assert TokenBytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer)).of(2) is None
