"""Renders conversations with a checkpoint's or a spec's chat template, through transformers' sandbox."""

from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError

from flashgen_runtime.errors import ConfigError, RequestError
from flashgen_runtime.models.text_generation import Conversation

# A template computes with what the caller sent, so whatever an expression can raise is the caller's mistake: a role
# that the template does not know, a key that it misses.
TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class CheckpointChatTemplate:
    """A chat template with the special tokens of its tokenizer; a template cannot run code.

    Args:
        tokenizer: transformers' tokenizer.
        template: Jinja source.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer = tokenizer
        self._template = template

    def render(self, messages: Conversation) -> str:
        """The conversation as text, up to where the model's turn begins."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        except TEMPLATE_ERRORS as error:
            message = f"`messages` do not fit the model's chat template: {error}"
            raise RequestError(message, kind="invalid_request", param="messages") from error
        return text


class FoundTemplate(NamedTuple):
    """The chat template that holds, and who supplied it."""

    template: CheckpointChatTemplate | None
    origin: Literal["spec", "checkpoint", "none"]


def find_chat_template(tokenizer: Any, configured: str | None) -> FoundTemplate:
    """The configuration's template, else the checkpoint's, else none; raises `ConfigError` for one without sense."""
    if configured is not None:
        _check_syntax(tokenizer, configured)
        return FoundTemplate(CheckpointChatTemplate(tokenizer, configured), "spec")
    if not tokenizer.chat_template:
        return FoundTemplate(None, "none")
    return FoundTemplate(CheckpointChatTemplate(tokenizer, tokenizer.get_chat_template()), "checkpoint")


def _check_syntax(tokenizer: Any, template: str) -> None:
    """Whether a conversation suits the template shows when it comes; its syntax shows now."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], chat_template=template, tokenize=False)
    except TemplateSyntaxError as error:
        raise ConfigError("chat_template", f"line {error.lineno}: {error.message}") from error
    except TEMPLATE_ERRORS:
        return
