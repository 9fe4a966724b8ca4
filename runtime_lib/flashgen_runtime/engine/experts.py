"""Mixtures of experts over packed weights, by the name under which transformers' classes find the function.

An experts class of transformers hands over its tokens, the chosen experts and their weights, and says by attributes
how its matrices lie. So one function serves all of them; each class keeps its own gate.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from flashgen_runtime.engine.packers import Packer
from flashgen_runtime.kernels.panels import Panels, WeightFormat, linear

EXPERTS = "serving_experts"

# Gates of the classes' own are torch operations over all chosen experts in one row of memory. Its vectors work on 32
# values at once, and the rest, which depends on the number of rows, is rounded another way.
TORCH_VECTOR = 32


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """The matrices of one layer's experts, in the order of their numbers."""

    # Gate and up projection in one, or the up projection alone.
    up: list[Panels]
    down: list[Panels]


def is_experts(module: torch.nn.Module) -> bool:
    """Whether a module is an experts class that `experts_forward` can stand in for."""
    return all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "down_proj", "num_experts"))


def pack_experts(module: Any, weight_format: WeightFormat, packer: Packer) -> None:
    """Packs a module's matrices in place of its parameters and makes it run `experts_forward`."""
    up = "gate_up_proj" if module.has_gate else "up_proj"
    packed = PackedExperts(
        up=_pack_each(module, up, weight_format, packer),
        down=_pack_each(module, "down_proj", weight_format, packer),
    )
    for name in (up, "down_proj"):
        delattr(module, name)
        if module.has_bias:
            delattr(module, f"{name}_bias")
    module.packed = packed
    # The classes look the function up by their configuration at every call.
    module.config._experts_implementation = EXPERTS


def is_gate_invariant(module: Any) -> bool:
    """Whether the gate gives each row the same bits in any company."""
    packed: PackedExperts = module.packed
    return packed.down[0].in_features % TORCH_VECTOR == 0


def experts_forward(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What the experts of each token make of it, weighted and added in the order of the router's choice.

    Args:
        hidden_states: [T, hidden_size], float32
        top_k_index, top_k_weights: [T, K]

    Returns:
        [T, hidden_size], float32
    """
    packed: PackedExperts = module.packed
    num_tokens, top_k = top_k_index.shape
    # Sorted, so that each expert reads its tokens as one run of rows.
    experts, order = top_k_index.flatten().sort(stable=True)
    counts = torch.bincount(experts, minlength=module.num_experts).tolist()
    rows = hidden_states.index_select(0, order // top_k)

    projected = _linear_by_expert(rows, packed.up, counts)
    gated = module._apply_gate(projected) if module.has_gate else module.act_fn(projected)
    results = _linear_by_expert(gated.contiguous(), packed.down, counts)
    if module.has_post_expert_norm:
        results = module.post_expert_norm(results)

    unsorted = torch.empty_like(results).index_copy_(0, order, results).view(num_tokens, top_k, -1)
    weights = top_k_weights.float().unsqueeze(2)
    # One after another: the order of a sum over a dimension is torch's to choose.
    total = unsorted[:, 0] * weights[:, 0]
    for choice in range(1, top_k):
        total += unsorted[:, choice] * weights[:, choice]
    return total


def _pack_each(module: Any, name: str, weight_format: WeightFormat, packer: Packer) -> list[Panels]:
    matrices: torch.Tensor = getattr(module, name)
    biases: Any = getattr(module, f"{name}_bias") if module.has_bias else [None] * len(matrices)
    return [
        packer.pack([matrix.T if module.is_transposed else matrix], weight_format, biases=[bias])
        for matrix, bias in zip(matrices, biases, strict=True)
    ]


def _linear_by_expert(rows: torch.Tensor, experts: list[Panels], counts: list[int]) -> torch.Tensor:
    """`rows` are ordered by expert, `counts[e]` of them for expert e."""
    results = rows.new_empty(len(rows), experts[0].out_features)
    first = 0
    for expert, count in zip(experts, counts, strict=True):
        if count:
            linear(rows[first : first + count], expert, out=results[first : first + count])
            first += count
    return results


ALL_EXPERTS_FUNCTIONS.register(EXPERTS, experts_forward)
