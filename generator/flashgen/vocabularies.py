"""Whether two checkpoints mean the same by a token's number, as far as their folders tell."""

from typing import Any

from flashgen.checkpoints import Checkpoint
from flashgen.config_fields import number, text_config
from flashgen.diagnostics import quote


def difference(first: Checkpoint, second: Checkpoint) -> str | None:
    """What differs, in words; `None` where nothing is seen to.

    Tokens that only one of them has are no difference: vocabularies are padded, and get tokens added.
    """
    tokens, others = _tokens(first.tokenizer), _tokens(second.tokenizer)
    if tokens and others:
        for token_id in sorted(tokens.keys() & others.keys()):
            token, other = tokens[token_id], others[token_id]
            if token != other:
                return f"token {token_id} is {quote(token)} for the one and {quote(other)} for the other"
        return None
    size, other_size = _vocab_size(first), _vocab_size(second)
    if size is None or other_size is None or size == other_size:
        return None
    return f"the one has {size} tokens and the other {other_size}"


def _tokens(tokenizer: dict[str, Any]) -> dict[int, str]:
    """By number; empty where the file is none that we read."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    try:
        if isinstance(vocabulary, dict):
            tokens = {token_id: token for token, token_id in vocabulary.items()}
        else:
            # With the score of each.
            tokens = {token_id: token for token_id, (token, _) in enumerate(vocabulary or ())}
        return tokens | {token["id"]: token["content"] for token in added or ()}
    except (TypeError, ValueError, KeyError):
        return {}


def _vocab_size(checkpoint: Checkpoint) -> int | None:
    return number(text_config(checkpoint.config), ("vocab_size",))
