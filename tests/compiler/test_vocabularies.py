"""Whether two checkpoints mean the same by a token's number."""

import json
from pathlib import Path
from typing import Any

import pytest

from flashgen.checkpoints import Checkpoint
from flashgen.vocabularies import difference

WORDS: dict[str, Any] = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<end>"}]}


def checkpoint(folder: Path, *, vocab_size: int | None, tokenizer: object = None) -> Checkpoint:
    folder.mkdir()
    config = {} if vocab_size is None else {"vocab_size": vocab_size}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return Checkpoint(folder)


@pytest.mark.parametrize(
    ("tokenizer", "found"),
    [
        (WORDS, None),
        ({**WORDS, "added_tokens": []}, None),
        ({"model": {"vocab": [["a", 0.0], ["b", -1.5], ["<end>", 0.0], ["c", 0.0]]}}, None),
        ({"model": {"vocab": {"b": 0, "a": 1}}}, "token 0 is `a` for the one and `b` for the other"),
        (
            {**WORDS, "added_tokens": [{"id": 2, "content": "<stop>"}]},
            "token 2 is `<end>` for the one and `<stop>` for the other",
        ),
    ],
    ids=["equal", "fewer", "with-scores", "another-order", "another-added-token"],
)
def test_tokens_are_compared_by_number(tmp_path: Path, tokenizer: object, found: str | None) -> None:
    """Those that both have; how far a vocabulary is padded does not matter."""
    first = checkpoint(tmp_path / "first", vocab_size=64, tokenizer=WORDS)
    second = checkpoint(tmp_path / "second", vocab_size=128, tokenizer=tokenizer)

    assert difference(first, second) == found


@pytest.mark.parametrize("tokenizer", [None, [], {"model": {"vocab": [1]}}, {"model": {}, "added_tokens": [{}]}])
def test_without_readable_tokenizers_their_numbers_are_compared(tmp_path: Path, tokenizer: object) -> None:
    """As far as the configurations say them."""
    words = checkpoint(tmp_path / "words", vocab_size=64, tokenizer=WORDS)
    equal = checkpoint(tmp_path / "equal", vocab_size=64, tokenizer=tokenizer)
    larger = checkpoint(tmp_path / "larger", vocab_size=65, tokenizer=tokenizer)
    unknown = checkpoint(tmp_path / "unknown", vocab_size=None, tokenizer=tokenizer)

    assert difference(words, equal) is None
    assert difference(words, larger) == "the one has 64 tokens and the other 65"
    assert difference(words, unknown) is None
