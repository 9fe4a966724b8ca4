"""Replaces submodules of a loaded model by ours: packed linears, norms, activations, rotary tables, experts.

Activations are float32 afterwards, weights in the checkpoint's dtype or quantised. What a module computes is known by
its type where that is torch's own. Classes of the models' own are recognised by what they do: our replacement must give
what the module gives for random input, or the module stays.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from flashgen_runtime.config import Quantization
from flashgen_runtime.engine.experts import is_experts, is_gate_invariant, pack_experts
from flashgen_runtime.engine.packers import MemoryPacker, Packer
from flashgen_runtime.engine.replacements import (
    FloatEmbedding,
    GatedMLP,
    KernelActivation,
    KernelLayerNorm,
    KernelRMSNorm,
    LinearWeight,
    PackedLinear,
    RotaryTable,
)
from flashgen_runtime.kernels.operations import Activation
from flashgen_runtime.kernels.panels import WeightFormat

FORMATS = {
    torch.float32: WeightFormat.F32,
    torch.float16: WeightFormat.F16,
    torch.bfloat16: WeightFormat.BF16,
}

# How far a replacement may be from what it replaces, in float32: activations differ among each other by more.
TOLERANCE = 2e-5

# Parameters that go to our attention.
SINKS = "sinks"


@dataclass(slots=True)
class SurgeryReport:
    """What became of a model's submodules, by the names of their classes."""

    replaced: Counter[str] = field(default_factory=Counter)

    # These run on torch.
    left: Counter[str] = field(default_factory=Counter)

    @property
    def is_complete(self) -> bool:
        """Whether no linear, norm, activation or rotary embedding is left to torch."""
        return not self.left


def operate(
    model: Any, *, dtype: torch.dtype, quantization: Quantization | None, packer: Packer | None = None
) -> SurgeryReport:
    """Replaces what it can in a model of transformers; the rest becomes float32.

    Each module's own weights are freed as it is replaced: the peak is the model and one module.

    Args:
        model: a model with a head for text, on the CPU.
        dtype: of the weights that are not quantised.
        quantization: format of all linear layers, except that the head is never below int8.
        packer: gives the packed layers; `None` makes them.
    """
    surgeon = _Surgeon(model, dtype, quantization, packer or MemoryPacker())
    surgeon.operate(model)
    model.float()
    surgeon.report.left.update(_left_to_torch(model))
    # Transformers' code asks a model for its dtype and device, which are those of its first parameter.
    model.register_parameter("activations", nn.Parameter(torch.empty(0), requires_grad=False))
    return surgeon.report


class _Surgeon:
    """Walks a model once."""

    def __init__(self, model: Any, dtype: torch.dtype, quantization: Quantization | None, packer: Packer) -> None:
        self.report = SurgeryReport()
        quantized = None if quantization is None else WeightFormat[quantization.upper()]
        self._format = FORMATS[dtype] if quantized is None else quantized
        # Rounding the head to 4 bits would cost the most and save the least.
        self._head_format = WeightFormat.INT8 if quantized is WeightFormat.INT4 else self._format
        self._packer = packer
        self._head = model.get_output_embeddings()
        # Comparing takes a float32 copy of the layer, so one of each class is enough.
        self._is_gated_mlp: dict[type[nn.Module], bool] = {}

    def operate(self, parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            replacement = self._replacement(child)
            if replacement is not None:
                setattr(parent, name, replacement)
                self.report.replaced[type(child).__name__] += 1
                continue
            self.operate(child)
            if is_experts(child):
                pack_experts(child, self._format, self._packer)
                self.report.replaced[type(child).__name__] += 1
            elif is_router(child):
                _pack_router(child)
                self.report.replaced[type(child).__name__] += 1

    def _replacement(self, module: nn.Module) -> nn.Module | None:
        if isinstance(module, (nn.Linear, Conv1D)):
            return self._linear(module)
        if isinstance(module, nn.Embedding):
            return _embedding(module)
        if type(module) is nn.LayerNorm:
            return KernelLayerNorm(module) if len(module.normalized_shape) == 1 else None
        if is_rotary(module):
            return RotaryTable(module)
        return self._gated_mlp(module) or _rms_norm(module) or _activation(module)

    def _linear(self, module: nn.Linear | Conv1D) -> PackedLinear | None:
        if type(module) not in (nn.Linear, Conv1D):
            return None
        weight = module.weight.detach()
        weight_format = self._head_format if module is self._head else self._format
        rows = weight.T if isinstance(module, Conv1D) else weight
        return PackedLinear(self._packer.pack([rows], weight_format, biases=[module.bias]))

    def _gated_mlp(self, module: nn.Module) -> GatedMLP | None:
        children = dict(module.named_children())
        if set(children) != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
            return None
        activation = _activation(children.pop("act_fn"))
        linears = {name: child for name, child in children.items() if type(child) is nn.Linear}
        if activation is None or len(linears) < len(children):
            return None
        if type(module) not in self._is_gated_mlp:
            self._is_gated_mlp[type(module)] = _is_gated_mlp(module, activation.kind)
        return _fuse(linears, activation.kind, self._format, self._packer) if self._is_gated_mlp[type(module)] else None


def is_router(module: nn.Module) -> bool:
    """Whether a module chooses experts by a matrix of its own."""
    weight = getattr(module, "weight", None)
    return "Router" in type(module).__name__ and isinstance(weight, nn.Parameter) and weight.dim() == 2


def is_rotary(module: nn.Module) -> bool:
    """Whether a module gives the angles of positions."""
    return type(module).__name__.endswith("RotaryEmbedding") and any("inv_freq" in name for name in module._buffers)


def _pack_router(module: nn.Module) -> None:
    """In float32, whatever the rest is in: a rounded score may choose another expert."""
    weight = module.get_parameter("weight").detach().float()
    delattr(module, "weight")
    module.weight = LinearWeight.of(weight)


def _embedding(module: nn.Embedding) -> FloatEmbedding | None:
    table = module.weight.detach()
    if type(module) is nn.Embedding:
        return FloatEmbedding(table, scale=None) if module.max_norm is None else None
    # As a number it has not been rounded to the table's dtype.
    scale: Any = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", None))
    if scale is None:
        return None
    replacement = FloatEmbedding(table, scale=float(scale))
    ids = torch.arange(min(3, module.num_embeddings))
    # The class rounds the factor and the product, so it is that far off.
    is_same = torch.allclose(module(ids).float(), replacement(ids), rtol=4 * torch.finfo(table.dtype).eps)
    return replacement if is_same else None


def _rms_norm(module: nn.Module) -> KernelRMSNorm | None:
    eps = next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)
    names = [name for name, _ in module.named_parameters()]
    if names != ["weight"] or module.get_parameter("weight").dim() != 1 or not isinstance(eps, float):
        return None
    weight = module.get_parameter("weight").detach()
    candidates = (KernelRMSNorm(weight, offset=offset, eps=eps) for offset in (0.0, 1.0))
    return _recognise(module, candidates, _random(3, len(weight)))


def _activation(module: nn.Module) -> KernelActivation | None:
    has_state = any(True for _ in module.children()) or any(True for _ in module.parameters())
    if has_state or "activation" not in type(module).__module__:
        return None
    return _recognise(module, map(KernelActivation, Activation), 3 * _random(3, 64))


_Module = TypeVar("_Module", bound=nn.Module)


def _recognise(module: nn.Module, candidates: Iterable[_Module], x: torch.Tensor) -> _Module | None:
    """The first candidate that gives what the module gives in float32."""
    weights = {name: parameter.detach().float() for name, parameter in module.named_parameters()}
    with torch.inference_mode():
        try:
            expected = functional_call(module, weights, (x,))
        # A class that takes more than one argument, or another shape: not what we look for.
        except (TypeError, RuntimeError, ValueError):
            return None
        return next((each for each in candidates if torch.allclose(each(x), expected, atol=TOLERANCE)), None)


def _is_gated_mlp(module: nn.Module, kind: Activation) -> bool:
    """Whether a class computes what `GatedMLP` does: asked of a copy with small layers, whatever the real size."""
    small = copy(module)
    linears = {"gate_proj": nn.Linear(8, 16), "up_proj": nn.Linear(8, 16), "down_proj": nn.Linear(16, 8)}
    small._modules = {**module._modules, **linears}
    return _recognise(small, [_fuse(linears, kind, WeightFormat.F32, MemoryPacker())], _random(3, 8)) is not None


def _fuse(linears: dict[str, nn.Linear], kind: Activation, weight_format: WeightFormat, packer: Packer) -> GatedMLP:
    gate, up, down = (linears[name] for name in ("gate_proj", "up_proj", "down_proj"))
    weights = [gate.weight.detach(), up.weight.detach()]
    return GatedMLP(
        packer.pack(weights, weight_format, biases=[gate.bias, up.bias]),
        packer.pack([down.weight.detach()], weight_format, biases=[down.bias]),
        kind,
    )


def _random(rows: int, size: int) -> torch.Tensor:
    """Always the same numbers, and the process's own generator stays as it is."""
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(0))


def _left_to_torch(model: nn.Module) -> Iterator[str]:
    """Classes of the modules that still compute with weights of their own, or activate."""
    for module in model.modules():
        is_packed_router = isinstance(getattr(module, "weight", None), LinearWeight)
        has_weights = any(name != SINKS and each is not None for name, each in module._parameters.items())
        has_own_gate = is_experts(module) and not is_gate_invariant(module)
        is_activation = "activation" in type(module).__module__
        if (has_weights and not is_packed_router) or has_own_gate or is_activation:
            yield type(module).__name__
