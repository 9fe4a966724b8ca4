"""What we use of transformers' fast tokenizers, done by the tokenizers library alone.

transformers' class around that library takes most of a second to import and decides much from many files when it loads.
What it decided is a value, `TokenizerFacts`, and the library's own file; with both this class does the same.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from tokenizers import Tokenizer

from flashgen_runtime.loader.chat_rendering import render_chat


class TokenizerFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What transformers knows about a tokenizer beside the library's file."""

    # In its order, extra ones included.
    special_ids: tuple[int, ...]

    # "bos_token": "<s>"
    special_tokens: dict[str, str]
    truncation_side: str
    split_special_tokens: bool

    # By name, for checkpoints with several; `None` where there is none.
    chat_template: str | dict[str, str] | None


class BackendTokenizer:
    """A tokenizer with the methods of transformers' classes that this package calls."""

    def __init__(self, backend: Tokenizer, facts: TokenizerFacts) -> None:
        self._backend = backend
        self._facts = facts
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = facts.split_special_tokens

    @property
    def all_special_ids(self) -> list[int]:
        return list(self._facts.special_ids)

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        return dict(self._backend.get_added_tokens_decoder())

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        return self._facts.chat_template

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        verbose: bool = True,  # noqa: ARG002 -- it never warns
    ) -> list[int]:
        """Not to be called with and without truncation at the same time."""
        self._truncate(max_length if truncation else None)
        token_ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return token_ids

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        assert not clean_up_tokenization_spaces, "it changes text that was handed out already"
        text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def tokenize(self, text: str) -> list[str]:
        self._truncate(None)
        tokens: list[str] = self._backend.encode(text, add_special_tokens=False).tokens
        return tokens

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def get_chat_template(self) -> str:
        """Of several the one called "default"; raises `ValueError` if there is none."""
        match self._facts.chat_template:
            case str(template):
                return template
            case {"default": template}:
                return template
            case dict(templates):
                raise ValueError(f"none of its chat templates is the default: {', '.join(sorted(templates))}")
            case _:
                raise ValueError("it has no chat template")

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        chat_template: str,
        tokenize: bool,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as text."""
        assert add_generation_prompt, "nothing else is asked for"
        assert not tokenize, "nothing else is asked for"
        if isinstance(self._facts.chat_template, dict):
            chat_template = self._facts.chat_template.get(chat_template, chat_template)
        return render_chat(chat_template, messages, self._facts.special_tokens)

    def _truncate(self, max_length: int | None) -> None:
        """Changes the library's setting only where it differs: other threads may be reading it."""
        current = self._backend.truncation
        if max_length is None:
            if current is not None:
                self._backend.no_truncation()
        elif current is None or current["max_length"] != max_length:
            self._backend.enable_truncation(max_length, direction=self._facts.truncation_side)
