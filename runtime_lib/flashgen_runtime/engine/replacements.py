"""Modules that take the place of a transformers model's own, computing on our kernels.

They take and give float32. Their weights are neither parameters nor buffers: whatever dtype the rest of the model is
brought to, they stay as they are.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear as torch_linear

from flashgen_runtime.kernels.operations import Activation, activate, gated_activation, layer_norm, rms_norm
from flashgen_runtime.kernels.panels import Panels, WeightFormat, linear, pack

# Positions whose angles are computed together, once; every step reads them.
ROTARY_CHUNK = 256


class PackedLinear(nn.Module):
    """`nn.Linear` over packed weights."""

    def __init__(self, panels: Panels) -> None:
        super().__init__()
        self.panels = panels
        self.in_features, self.out_features = panels.in_features, panels.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.panels)


class FloatEmbedding(nn.Module):
    """`nn.Embedding` whose table stays in its dtype while the rows that it gives are float32."""

    def __init__(self, table: torch.Tensor, scale: float | None) -> None:
        super().__init__()
        self.table = table.detach()
        self.scale = scale
        self.num_embeddings, self.embedding_dim = table.shape

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows = self.table.index_select(0, input_ids.flatten()).float().view(*input_ids.shape, self.embedding_dim)
        return rows if self.scale is None else rows * self.scale


class KernelRMSNorm(nn.Module):
    """Root mean square norm, times weight + offset."""

    def __init__(self, weight: torch.Tensor, *, offset: float, eps: float) -> None:
        super().__init__()
        self.scale = weight.detach().float().contiguous()
        self.offset = offset
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.scale, offset=self.offset, eps=self.eps)


class KernelLayerNorm(nn.Module):
    """`nn.LayerNorm` over the last dimension."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        size = norm.normalized_shape[0]
        self.scale = torch.ones(size) if norm.weight is None else norm.weight.detach().float().contiguous()
        self.shift = torch.zeros(size) if norm.bias is None else norm.bias.detach().float().contiguous()
        self.eps = norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.scale, self.shift, eps=self.eps)


class KernelActivation(nn.Module):
    """One of the activations that we have a kernel for."""

    def __init__(self, kind: Activation) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return activate(x, self.kind)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), with gate and up in one linear."""

    def __init__(self, gate_up: Panels, down: Panels, kind: Activation) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.down = down
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(gated_activation(linear(x, self.gate_up), self.kind), self.down)


class RotaryTable(nn.Module):
    """What a rotary embedding gives for each position, computed once: so it does not depend on the rest of a batch."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary
        # By what the class is called with besides: cosines and sines, [positions, D].
        self._tables: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, *arguments: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key = (*arguments, *sorted(named.items()))
        tables = self._tables.get(key)
        num_positions = int(position_ids.max()) + 1
        if tables is None or len(tables[0]) < num_positions:
            tables = self._tables[key] = self._tables_for(x, num_positions, *arguments, **named)
        cosines, sines = (table.index_select(0, position_ids.flatten()).unsqueeze(0) for table in tables)
        return cosines, sines

    def _tables_for(
        self, x: torch.Tensor, num_positions: int, *arguments: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chunks = []
        for first in range(0, num_positions, ROTARY_CHUNK):
            positions = torch.arange(first, first + ROTARY_CHUNK).unsqueeze(0)
            chunks.append(self.rotary(x, positions, *arguments, **named))
        cosines, sines = (torch.cat(parts, dim=1)[0] for parts in zip(*chunks, strict=True))
        return cosines, sines


class LinearWeight(torch.Tensor):
    """A weight matrix of a module that calls `torch.nn.functional.linear` itself: there our kernel does the work."""

    panels: Panels

    @classmethod
    def of(cls, weight: torch.Tensor) -> "LinearWeight":
        """`weight`: [out_features, in_features], float32."""
        tensor = weight.as_subclass(cls)
        tensor.panels = pack(weight, WeightFormat.F32)
        return tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch_linear and len(args) > 1 and isinstance(args[1], LinearWeight):
            product = linear(args[0], args[1].panels)
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            return product if bias is None else product + bias
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))
