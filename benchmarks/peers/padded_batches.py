"""What ONNX Runtime and OpenVINO need around a sentence encoder's graph, as sentence-transformers does it.

Texts are sorted by length, batches padded to their longest text, token vectors averaged over what is not padding.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

BATCH_SIZE = 32
MAX_TOKENS = 256

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


class PaddedBatch(NamedTuple):
    """Texts of similar length."""

    # Where each of them stands among all texts.
    places: list[int]

    # By name of the graph's input, [B, longest].
    inputs: dict[str, Ints]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The checkpoint's, truncating, without padding of its own."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    return tokenizer


def padded_batches(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[PaddedBatch]:
    """All texts, the longest first."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(encoded)), key=lambda place: -len(encoded[place]))
    for start in range(0, len(order), BATCH_SIZE):
        places = order[start : start + BATCH_SIZE]
        ids = np.zeros((len(places), len(encoded[places[0]])), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, place in enumerate(places):
            ids[row, : len(encoded[place])] = encoded[place]
            mask[row, : len(encoded[place])] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        yield PaddedBatch(places, inputs)


def pooled(hidden: Floats, mask: Ints) -> list[bytes]:
    """[B, S, hidden_size] → one vector of length 1 each."""
    means = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1)[:, None]
    vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
    return [vector.astype(np.float32).tobytes() for vector in vectors]
