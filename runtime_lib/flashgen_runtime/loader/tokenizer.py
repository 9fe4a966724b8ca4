"""A checkpoint's tokenizer: through transformers the first time, from what the store keeps of it afterwards."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.checkpoint import first_line
from flashgen_runtime.loader.token_bytes import TokenBytes
from flashgen_runtime.loader.tokenizer_cache import find_kept, keep


class CheckpointTokenizer:
    """What the engine asks of a tokenizer (`engine.tokenizer.Tokenizer`), and truncation for encoders.

    Several threads may use it at once, as long as either all of them truncate or none does.

    Args:
        tokenizer: transformers' tokenizer or a `BackendTokenizer`, also for its chat template.
        vocab_size: rows of the model's embedding; the tokenizer may know fewer or more tokens.
    """

    def __init__(self, tokenizer: Any, *, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._token_bytes = TokenBytes(tokenizer)

        # The first call drops truncation and padding that the checkpoint's file may ask for: with several threads at
        # once, each would change what the others read.
        self.encode("", add_special_tokens=False)
        self._truncating = Lock()

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        token_ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        return token_ids

    def encode_truncated(self, text: str, *, max_tokens: int) -> list[int]:
        """At most `max_tokens` ids, the special tokens at both ends included."""
        with self._truncating:
            token_ids: list[int] = self.tokenizer.encode(text, truncation=True, max_length=max_tokens)
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        # Cleaning up would change text that was handed out already.
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_bytes(self, token_id: int) -> bytes | None:
        """A token's part of a text; `None` where the vocabulary does not tell."""
        return self._token_bytes.of(token_id)


def load_tokenizer(path: Path, *, vocab_size: int, store: Path | None = None) -> CheckpointTokenizer:
    """The tokenizer of the checkpoint in `path`; never runs code of the checkpoint. Raises `WeightsError`.

    Args:
        path: the checkpoint's folder.
        vocab_size: rows of the model's embedding.
        store: the root of a store that keeps it as transformers has loaded it, which saves the next load a second.
    """
    kept = find_kept(path, store) if store is not None else None
    if kept is not None:
        return CheckpointTokenizer(kept, vocab_size=vocab_size)
    tokenizer = _load(path)
    if store is not None:
        keep(tokenizer, path, store)
    return CheckpointTokenizer(tokenizer, vocab_size=vocab_size)


def _load(path: Path) -> Any:
    # Deferred: importing transformers takes most of a second, which kept tokenizers do not need.
    from transformers import AutoTokenizer

    from flashgen_runtime.loader.quiet import quiet_transformers

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    # The tokenizers library raises bare `Exception` for a broken file.
    except Exception as error:
        raise WeightsError(path, f"its tokenizer cannot be loaded: {first_line(error)}") from error
