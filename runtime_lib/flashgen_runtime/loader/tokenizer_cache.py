"""Tokenizers as transformers has loaded them once, kept so that the next start needs no transformers.

    <store>/tokenizers/<digest>.tokenizer       one line of facts as JSON, then the tokenizers library's own file

The digest is of every small file of the checkpoint and of the versions of both libraries, so a kept tokenizer is never
older than what it was made of. Only what provably behaves alike is kept: transformers' generic class or one that only
adds defaults to it, and texts of all kinds come out equal.
"""

import contextlib
import hashlib
import logging
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from flashgen_runtime.loader.backend_tokenizer import BackendTokenizer, TokenizerFacts
from flashgen_runtime.logs import fields

log = logging.getLogger(__name__)

# Raised when the file or its meaning changes.
FORMAT = 1

# Of files that may decide how a checkpoint's tokenizer behaves.
_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken"})
_LARGEST_BYTES = 64 << 20

# What `BackendTokenizer` does must not be changed by a class of a single model.
_METHODS = (
    "encode",
    "_encode_plus",
    "decode",
    "_decode",
    "tokenize",
    "convert_ids_to_tokens",
    "set_truncation_and_padding",
    "apply_chat_template",
    "get_chat_template",
    "all_special_ids",
    "special_tokens_map",
    "added_tokens_decoder",
)

_TEXTS = (
    "",
    " ",
    "a",
    "Hello, world! It's 2024: 3.14 x 10^7.",
    "  two  spaces\n\n\tand a tab ",
    "def f(x):\n    return x**2  # żółw\n",
    "naïve café Ⅻ ﬁ \u200d 中文字符 العربية हिन्दी 🐢👩‍👩‍👧",
    "<s></s><unk><pad>[CLS][SEP][MASK]<|endoftext|><|im_start|>user\n<0x0A>▁Ġ",
)


# What was read ahead, by file; a fork server's children find here what their parent has read.
_ahead: dict[Path, BackendTokenizer] = {}


def find_kept(path: Path, root: Path) -> BackendTokenizer | None:
    """The tokenizer of the checkpoint in `path`, if the store below `root` keeps it; the caller's own."""
    file = _file(path, root)
    return _ahead.pop(file, None) or _read(file)


def read_ahead(path: Path, root: Path) -> None:
    """Has the next `find_kept` find it in memory."""
    file = _file(path, root)
    if file not in _ahead and (tokenizer := _read(file)) is not None:
        _ahead[file] = tokenizer


def keep(tokenizer: Any, path: Path, root: Path) -> None:
    """Keeps what transformers has loaded, if it can be used without; a store that cannot be written keeps nothing."""
    content = _content(tokenizer)
    if content is None:
        log.info("transformers is needed for this tokenizer at each start", extra=fields(path=path))
        return
    file = _file(path, root)
    unfinished = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(file)
    except OSError as error:
        log.info("the tokenizer is not kept for the next start", extra=fields(path=path, reason=error))
        with contextlib.suppress(OSError):
            unfinished.unlink()


def _read(file: Path) -> BackendTokenizer | None:
    try:
        return _parsed(file.read_bytes())
    except FileNotFoundError:
        return None
    # The tokenizers library raises bare `Exception` for a broken file.
    except Exception as error:
        log.warning("a kept tokenizer cannot be read", extra=fields(path=file, reason=error))
        return None


def _parsed(content: bytes) -> BackendTokenizer:
    facts, _, backend = content.partition(b"\n")
    return BackendTokenizer(Tokenizer.from_buffer(backend), msgspec.json.decode(facts, type=TokenizerFacts))


def _content(tokenizer: Any) -> bytes | None:
    """The file of a tokenizer; `None` if something else than the file decides what it does."""
    from transformers.tokenization_utils_tokenizers import TokenizersBackend  # the caller has imported it

    if not isinstance(tokenizer, TokenizersBackend) or any(
        getattr(type(tokenizer), name) is not getattr(TokenizersBackend, name) for name in _METHODS
    ):
        return None
    facts = TokenizerFacts(
        special_ids=tuple(tokenizer.all_special_ids),
        special_tokens=dict(tokenizer.special_tokens_map),
        truncation_side=tokenizer.truncation_side,
        split_special_tokens=bool(tokenizer.split_special_tokens),
        chat_template=tokenizer.chat_template or None,
    )
    content = msgspec.json.encode(facts) + b"\n" + tokenizer.backend_tokenizer.to_str().encode()
    return content if _is_equal(tokenizer, _parsed(content)) else None


def _is_equal(tokenizer: Any, kept: BackendTokenizer) -> bool:
    return all(
        tokenizer.encode(text, add_special_tokens=special, verbose=False) == ids
        and tokenizer.decode(ids, skip_special_tokens=special, clean_up_tokenization_spaces=False)
        == kept.decode(ids, skip_special_tokens=special)
        for text in _TEXTS
        for special in (True, False)
        for ids in [kept.encode(text, add_special_tokens=special)]
    )


def _file(path: Path, root: Path) -> Path:
    digest = hashlib.sha256(_versions())
    for file in sorted([*path.iterdir(), *path.glob("additional_chat_templates/*")]):
        if file.suffix not in _SUFFIXES or not file.is_file():
            continue
        found = file.stat()
        if found.st_size <= _LARGEST_BYTES:
            digest.update(f"\0{file.relative_to(path)}\0".encode())
            digest.update(_digest(file, found.st_size, found.st_mtime_ns))
    return root / "tokenizers" / f"{digest.hexdigest()}.tokenizer"


@cache
def _versions() -> bytes:
    return f"{FORMAT} {version('tokenizers')} {version('transformers')}".encode()


# A forked worker finds here what its parent has read, unless the file was changed since.
@cache
def _digest(file: Path, size: int, modified: int) -> bytes:  # noqa: ARG001 -- parts of the cache's key
    return hashlib.sha256(file.read_bytes()).digest()
