"""Layers that a checkpoint holds as integers, for whoever wants floats: made when they are asked for, one at a time.

What transformers' classes get. Our own classes read the integers themselves (`engine/quantized_layers.py`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.checkpoint import first_line
from flashgen_runtime.loader.tensors import name_tensors
from flashgen_runtime.quantization.codes import CodesError
from flashgen_runtime.quantization.config import KEY, CheckpointQuantization
from flashgen_runtime.quantization.scheme import LayerScheme

# Last parts of the names of what every quantised layer of a scheme has.
_MARKS = ("qweight", "weight_packed", "weight_scale")
_SCALES = ("scales", "weight_scale")


class LazyTensor(Protocol):
    """A tensor that may not be there yet."""

    @property
    def dtype(self) -> torch.dtype:
        """Known beforehand."""

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Waits for it."""


class StoredLayer(NamedTuple):
    """A quantised layer, and the names of all tensors that it is made of."""

    scheme: LayerScheme
    names: tuple[str, ...]


def find_layers(path: Path, names: Iterable[str], quantization: CheckpointQuantization) -> dict[str, StoredLayer]:
    """The quantised layers among a checkpoint's tensors, by name; raises `WeightsError` for one that is not whole."""
    there = set(names)
    layers = {}
    for name in sorted(there):
        layer, _, part = name.rpartition(".")
        if part not in _MARKS:
            continue
        scheme = quantization.scheme_of(layer)
        if scheme is None:
            raise WeightsError(path, f"holds tensor `{name}`, and its `{KEY}` says that `{layer}` is not quantised")
        # Which tensors there are does not depend on the layer's size.
        wanted = [f"{layer}.{each}" for each in scheme.tensors(1, 1)]
        if missing := sorted(set(wanted) - there):
            raise WeightsError(path, f"lacks {name_tensors(missing)}")
        beside = [each for last in scheme.ignored if (each := f"{layer}.{last}") in there]
        layers[layer] = StoredLayer(scheme, (*wanted, *beside))
    return layers


def with_floats(
    path: Path, tensors: Mapping[str, LazyTensor], quantization: CheckpointQuantization
) -> dict[str, LazyTensor]:
    """The tensors with a `weight` of floats in the place of each quantised layer's own."""
    layers = find_layers(path, tensors, quantization)
    stored = {name for layer in layers.values() for name in layer.names}
    found = {name: tensor for name, tensor in tensors.items() if name not in stored}
    for layer, (scheme, _) in layers.items():
        parts = {name: tensors[f"{layer}.{name}"] for name in scheme.tensors(1, 1)}
        found[f"{layer}.weight"] = _DequantizedTensor(path, layer, scheme, parts)
    return found


class _DequantizedTensor:
    """Floats of a dtype that transformers takes for the model's, where nothing else says it: that of the scales.

    The values are float32: transformers casts, once.
    """

    def __init__(self, path: Path, layer: str, scheme: LayerScheme, parts: Mapping[str, LazyTensor]) -> None:
        self._path = path
        self._layer = layer
        self._scheme = scheme
        self._parts = parts

    @property
    def dtype(self) -> torch.dtype:
        return next(self._parts[name].dtype for name in _SCALES if name in self._parts)

    def is_floating_point(self) -> bool:
        return True

    def __getitem__(self, index: Any) -> torch.Tensor:
        try:
            codes = self._scheme.read(lambda name: self._parts[name][...])
            return codes.dequantize()[index]
        # Shapes are not known beforehand: torch notices those that do not fit together.
        except (CodesError, RuntimeError, IndexError) as error:
            raise WeightsError(self._path, f"layer `{self._layer}`: {first_line(error)}") from error
