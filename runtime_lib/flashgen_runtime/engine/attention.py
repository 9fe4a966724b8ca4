"""The attention functions that transformers' model classes call, by the names under which they are registered there.

A model class passes queries, keys and values and knows nothing of batches. What they belong to stands in one context
variable, set around each forward pass: `with attending(context): module(...)`. So the functions here only check that
they are asked for nothing that the context would leave out, and pass on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

# NOTE: transformers takes every name with "flash" in it for one of the flash attention packages.
DECODER_ATTENTION = "serving_decoder"
ENCODER_ATTENTION = "serving_encoder"

# Arguments that model classes hand through and that mean nothing here: positions are in the keys already, and there is
# neither transformers' cache nor an output of router logits.
NEUTRAL_ARGUMENTS = frozenset({"position_ids", "use_cache", "output_router_logits", "output_attentions", "is_causal"})


class AttentionContext(Protocol):
    """What a forward pass attends to: `T` tokens of all sequences in one row."""

    def attend(
        self,
        layer: int | None,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            layer: the layer's index; `None` where the model class does not number its layers.
            query: [1, H, T, D]
            key, value: [1, H_kv, T, D]; the value's head size may differ.
            scaling: factor of the scores.
            sliding_window: tokens that each token sees, itself included; `None` for all.
            softcap: scores become softcap * tanh(score / softcap); `None`: they stay.
            sinks: [H], one more score in each softmax, without a value.

        Returns:
            [1, T, H, D]
        """


class UnsupportedAttentionError(NotImplementedError):
    """A model class asks for something that our attention does not do yet."""

    def __init__(self, argument: str) -> None:
        super().__init__(f"attention with `{argument}`")
        self.argument = argument


_context: ContextVar[AttentionContext] = ContextVar("attention_context")


@contextmanager
def attending(context: AttentionContext) -> Iterator[None]:
    """Makes `context` what the model's attention works on."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def decoder_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention over the KV cache; raises `UnsupportedAttentionError` for what it would have to ignore."""
    if arguments.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise UnsupportedAttentionError("is_causal=False")
    _check_arguments(attention_mask, dropout, arguments)
    attended = _context.get().attend(
        getattr(module, "layer_idx", None),
        query,
        key,
        value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return attended, None


def encoder_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in both directions within each sequence; raises as `decoder_attention` does."""
    _check_arguments(attention_mask, dropout, arguments)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _context.get().attend(None, query, key, value, scaling=scaling, sliding_window=None), None


def _check_arguments(attention_mask: torch.Tensor | None, dropout: float, arguments: dict[str, Any]) -> None:
    if attention_mask is not None:
        raise UnsupportedAttentionError("attention_mask")
    if dropout:
        raise UnsupportedAttentionError("dropout")
    for name, argument in arguments.items():
        if argument is not None and name not in NEUTRAL_ARGUMENTS:
            raise UnsupportedAttentionError(name)


# Without a mask function of the same name model classes pass no mask.
AttentionInterface.register(DECODER_ATTENTION, decoder_attention)
AttentionInterface.register(ENCODER_ATTENTION, encoder_attention)
