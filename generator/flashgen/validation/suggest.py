"""The nearest known name to one that is not known."""

from collections.abc import Iterable
from itertools import islice

# Longer names have no near miss worth finding, nor have long lists; comparing them would be slow.
_MAX_LENGTH = 64
_MAX_KNOWN = 200


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most probably means: `max-tokens` and `max_tokns` mean `max_tokens`."""
    names = list(islice(known, _MAX_KNOWN))
    if len(name) > _MAX_LENGTH:
        return None
    for candidate in names:
        if _plain(candidate) == _plain(name):
            return candidate
    from difflib import get_close_matches  # deferred: only mistakes need it

    matches = get_close_matches(_plain(name), {_plain(candidate): None for candidate in names}, n=1, cutoff=0.65)
    return next((candidate for candidate in names if matches and _plain(candidate) == matches[0]), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
