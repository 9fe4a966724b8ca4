"""Frequencies of rotary position embeddings, as transformers' `modeling_rope_utils.py` computes them. No transformers.

Only kinds whose frequencies are the same for every position: `dynamic` and `longrope` choose theirs by the longest
position of a forward pass, so that one request would change another's result.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

DEFAULT_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class Rope:
    """What rotates queries and keys."""

    # [head size / 2], float32: angle of one position, in radians.
    frequencies: torch.Tensor

    # Of cosines and sines.
    factor: float = 1.0


class UnsupportedRopeError(ValueError):
    """A kind of rotary embedding that is not computed here; the message says which."""


def rope_of(config: Mapping[str, Any], *, head_size: int) -> Rope:
    """What a checkpoint's `config.json` asks for; raises `UnsupportedRopeError`.

    Both spellings count: `rope_parameters`, or `rope_theta` beside `rope_scaling`.
    """
    given: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    parameters = {name: value for name, value in given.items() if value is not None}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise UnsupportedRopeError("rotary embeddings that differ between layers")
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1):
        raise UnsupportedRopeError("rotary embeddings of a part of each head")
    if kind not in _KINDS:
        raise UnsupportedRopeError(f"rotary embeddings of type `{kind}`")

    theta = parameters.get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    context = _original_context(config, parameters)
    try:
        return _KINDS[kind](float(theta) ** exponents, float(theta), context, parameters)
    except KeyError as error:
        raise UnsupportedRopeError(f"rotary embeddings of type `{kind}` without `{error.args[0]}`") from error


def _original_context(config: Mapping[str, Any], parameters: Mapping[str, Any]) -> int | None:
    """The context before it was extended."""
    own = config.get("original_max_position_embeddings") or parameters.get("original_max_position_embeddings")
    return own or config.get("max_position_embeddings")


# Each kind of embedding takes the wavelengths over 2 pi, the base, the original context and the parameters.


def _default(periods: torch.Tensor, _theta: float, _context: int | None, _parameters: Mapping[str, Any]) -> Rope:
    return Rope(1.0 / periods)


def _linear(periods: torch.Tensor, _theta: float, _context: int | None, parameters: Mapping[str, Any]) -> Rope:
    return Rope((1.0 / periods) / parameters["factor"])


def _llama3(periods: torch.Tensor, _theta: float, context: int | None, parameters: Mapping[str, Any]) -> Rope:
    """Long waves are stretched, short ones stay, and between both they change gradually."""
    factor, low, high = (parameters[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if context is None:
        raise KeyError("original_max_position_embeddings")
    frequencies = 1.0 / periods
    wavelengths = 2 * math.pi / frequencies
    is_long, is_short = wavelengths > context / low, wavelengths < context / high
    stretched = torch.where(is_long, frequencies / factor, frequencies)
    share = (context / wavelengths - low) / (high - low)
    between = (1 - share) * stretched / factor + share * stretched
    return Rope(torch.where(is_long | is_short, stretched, between))


def _yarn(periods: torch.Tensor, theta: float, context: int | None, parameters: Mapping[str, Any]) -> Rope:
    """https://arxiv.org/abs/2309.00071: as llama3, by the number of rotations in the original context."""
    factor = parameters["factor"]
    if context is None:
        raise KeyError("original_max_position_embeddings")
    head_size = 2 * len(periods)

    def dimension(num_rotations: float) -> float:
        """Where in a head a wave rotates so often."""
        return head_size * math.log(context / (num_rotations * 2 * math.pi)) / (2 * math.log(theta))

    first = dimension(parameters.get("beta_fast") or 32)
    last = dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_size - 1)
    # As transformers keeps the division below from a zero.
    last += 0.001 if first == last else 0
    stretched_share = ((torch.arange(len(periods), dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    kept_share = 1 - stretched_share
    frequencies = 1.0 / (factor * periods) * (1 - kept_share) + 1.0 / periods * kept_share
    return Rope(frequencies, _yarn_factor(factor, parameters))


def _yarn_factor(factor: float, parameters: Mapping[str, Any]) -> float:
    own: float | None = parameters.get("attention_factor")
    if own is not None:
        return own
    scale, scale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if scale and scale_all:
        return _attention_scale(factor, scale) / _attention_scale(factor, scale_all)
    return _attention_scale(factor, 1)


def _attention_scale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


_KINDS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
