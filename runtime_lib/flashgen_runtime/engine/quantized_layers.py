"""The linear layers of a native model that its checkpoint holds as integers, and how each of them runs.

Where the kernels take a layer's codes they are kept, bit for bit; all others become floats when they are loaded. Layers
that are computed as one are of one form.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flashgen_runtime.config import DType, Quantization
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.tensors import CheckpointTensors
from flashgen_runtime.quantization.codes import Codes, CodesError
from flashgen_runtime.quantization.config import check_option, parse_quantization
from flashgen_runtime.quantization.scheme import (
    KernelForm,
    LayerScheme,
    StoredTensor,
    kernel_form,
    reason_against_kernels,
)

Shapes = dict[str, tuple[int, ...]]


class QuantizedLayer(NamedTuple):
    """A linear layer that is stored as integers."""

    scheme: LayerScheme
    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLayers:
    """All of a checkpoint."""

    path: Path
    tensors: CheckpointTensors

    # "awq int4 g128".
    label: str

    # By their names in the checkpoint; and all linear layers, those together that are computed as one.
    layers: Mapping[str, QuantizedLayer]
    fused: Sequence[tuple[str, ...]]

    # Why none of them keeps its codes; empty where that is up to each.
    reason_for_floats: str

    def form(self, parts: Sequence[str]) -> KernelForm | None:
        """How the kernels hold layers that are computed as one; `None`: as floats."""
        forms = {self._form(part) for part in parts}
        return forms.pop() if len(forms) == 1 else None

    def shape(self, part: str) -> tuple[int, int]:
        """Outputs and inputs of a quantised layer."""
        layer = self.layers[part]
        return layer.out_features, layer.in_features

    def codes(self, part: str) -> Codes:
        """A quantised layer's values; raises `WeightsError` that names it."""
        try:
            return self.layers[part].scheme.read(lambda name: self.tensors.read(f"{part}.{name}"))
        except CodesError as error:
            raise WeightsError(self.path, f"layer `{part}`: {error}") from error

    def running(self, dtype: str) -> str:
        """How the layers run, in the words of `label`; `dtype` is that of the others."""
        floats = self.floats()
        if not floats:
            return self.label
        is_all = len(floats) == len(self.layers)
        return f"{self.label} as {dtype}" if is_all else f"{self.label} in part as {dtype}"

    def floats(self) -> dict[str, str]:
        """The layers that become floats, each with the reason."""
        found: dict[str, str] = {}
        for parts in self.fused:
            if self.form(parts) is None:
                found |= {part: self._reason(part) for part in parts if part in self.layers}
        return found

    def _form(self, part: str) -> KernelForm | None:
        layer = self.layers.get(part)
        if layer is None or self.reason_for_floats:
            return None
        return kernel_form(layer.scheme.precision, layer.in_features)

    def _reason(self, part: str) -> str:
        own = reason_against_kernels(self.layers[part].scheme.precision)
        return self.reason_for_floats or own or "computed as one with layers of another form"


class FoundLayers(NamedTuple):
    """What a checkpoint's tensors must be: those in floats, those of quantised layers, and names that say nothing."""

    shapes: Shapes
    stored: dict[str, StoredTensor]
    ignored: list[str]
    quantized: QuantizedLayers | None


def find_quantized(
    path: Path,
    tree: Mapping[str, Any],
    tensors: CheckpointTensors,
    *,
    shapes: Shapes,
    fused: Iterable[tuple[str, ...]],
    dtype: DType,
    quantization: Quantization | None,
) -> FoundLayers:
    """What the configuration says of a native model's layers.

    Args:
        path: the checkpoint's folder.
        tree: its `config.json`.
        tensors: its tensors.
        shapes: of all tensors, were nothing quantised.
        fused: the linear layers, those together that are computed as one.
        dtype: that is asked for; float32 alone asks for the weights that the format defines, in full.
        quantization: that is asked for.

    Raises:
        WeightsError: the configuration asks for what is not run.
        ConfigError: another precision is asked for than the checkpoint has.
    """
    found = parse_quantization(path, tree)
    if found is None:
        return FoundLayers(shapes, {}, [], None)
    check_option(found, quantization, path)
    fused, shapes = tuple(fused), dict(shapes)
    layers: dict[str, QuantizedLayer] = {}
    stored: dict[str, StoredTensor] = {}
    ignored: list[str] = []
    for name in (name for parts in fused for name in parts):
        scheme = found.scheme_of(name)
        if scheme is None:
            continue
        out_features, in_features = shapes.pop(f"{name}.weight")
        layers[name] = QuantizedLayer(scheme, out_features, in_features)
        stored |= {f"{name}.{part}": each for part, each in scheme.tensors(out_features, in_features).items()}
        ignored += [f"{name}.{part}" for part in scheme.ignored]
        # Tools write a bias of zeros beside layers that have none; sources take it where it is.
        if (bias := f"{name}.bias") in tensors.names:
            shapes[bias] = (out_features,)
    is_reference = dtype == "float32" and quantization is None
    quantized = QuantizedLayers(
        path=path,
        tensors=tensors,
        label=found.label,
        layers=layers,
        fused=fused,
        reason_for_floats="float32 is asked for" if is_reference else "",
    )
    return FoundLayers(shapes, stored, ignored, quantized)


def layer_kinds(names: Iterable[str]) -> str:
    """Names for the log, those of all numbers together: `model.layers.*.mlp.down_proj`."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
