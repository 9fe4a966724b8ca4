"""Chats come out as transformers renders them."""

from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from flashgen_runtime.loader.chat_rendering import render_chat

CODER = Path(__file__).parents[2] / "samples" / "models" / "stdlib-coder" / "chat_template.jinja"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <brief>.", "name": None},
    {"role": "user", "content": "Zażółć 'gęślą'\n"},
    {
        "role": "assistant",
        "content": " Hm ",
        "reasoning": "because",
        "tool_calls": [{"id": 1, "f": {"x": [1.5, None]}}],
    },
    {"role": "user", "content": "?"},
]
TEMPLATES = [
    CODER.read_text(),
    "{{ bos_token }}{% for m in messages %}{{ loop.index0 }}{{ m['role'] }}{{ m.content | trim }}{{ eos_token }}"
    "{% endfor %}",
    "  {% for m in messages %}\n  {% if m.name is defined %}{{ m.name }}{% endif %}\n"
    "{{ m | tojson }}\n  {% endfor %}\n",
    "{{ messages | tojson(indent=2) }}{{ messages[2] | tojson(sort_keys=true, separators=(',', ':')) }}",
    "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ m.get('reasoning') }}{% endfor %}",
    "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ dict(a=1, b=messages[0].role) }}{{ dict.fromkeys(['a', 'b'], 1) }}{{ add_generation_prompt }}{{ tools }}",
    "{{ strftime_now('%Y') }}{{ documents is none }}{{ undefined_name }}{{ messages[0].content[:3] }}",
    "{% macro say(m) %}<{{ m.role }}>{% endmacro %}{% for m in messages | rejectattr('role', 'equalto', 'user') %}"
    "{{ say(m) }}{% endfor %}",
]
REFUSED = [
    "{{ raise_exception('no ' + messages[0].role) }}",
    "{{ messages[0].__class__.__mro__ }}{{ messages.append(1) }}",
    "{% set ns = namespace(_hidden=1) %}",
    "{% set ns = namespace() %}{% set ns._hidden = 1 %}",
    "{{ messages[9].role }}",
    "{{ 1 / 0 }}",
    "{% for %}",
]


def theirs(template: str, messages: list[dict[str, Any]]) -> str:
    present = [{key: value for key, value in message.items() if value is not None} for message in messages]
    (text,), _ = render_jinja_template([present], chat_template=template, add_generation_prompt=True, **TOKENS)
    return str(text)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_comes_out_as_from_transformers(template: str) -> None:
    """White space, filters, globals, loop controls, blocks for training."""
    assert render_chat(template, CHAT, TOKENS) == theirs(template, CHAT)


@pytest.mark.parametrize("template", REFUSED)
def test_what_transformers_refuses_is_refused(template: str) -> None:
    """With the same kind of exception."""
    with pytest.raises(Exception) as expected:  # noqa: PT011 -- whatever it is
        theirs(template, CHAT)

    with pytest.raises(type(expected.value)):
        render_chat(template, CHAT, TOKENS)


def test_an_empty_chat_is_refused() -> None:
    """As transformers does."""
    with pytest.raises(ValueError, match="at least one message"):
        render_chat("", [], TOKENS)


def test_a_template_can_refuse_a_chat() -> None:
    """With words of its own."""
    with pytest.raises(TemplateError, match="roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", CHAT, TOKENS)
