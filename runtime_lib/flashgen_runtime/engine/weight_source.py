"""Where the weights of a native model come from: packed from a checkpoint, or only counted. No transformers.

A model names its weights in the order in which it uses them, with the tensors of the checkpoint that each is made of;
a source gives them. Weights that lie in a file ready for use are in `mapped_weights`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from flashgen_runtime.engine.quantized_layers import QuantizedLayers
from flashgen_runtime.kernels.coded_panels import pack_codes
from flashgen_runtime.kernels.panels import Panels, WeightFormat, pack_fused, panels_without_data
from flashgen_runtime.loader.reader import OpenFile
from flashgen_runtime.loader.stream import WeightStream
from flashgen_runtime.loader.tensors import CheckpointTensors
from flashgen_runtime.quantization.scheme import coded_weight, fused

# Makes what a model uses from tensors of a checkpoint; a function of their values alone.
Make = Callable[..., torch.Tensor]


class Mark(NamedTuple):
    """A place in a stream of files, as `WeightStream.wait_for` takes it."""

    file: OpenFile
    end: int


class WeightSource(Protocol):
    """Gives weights in the order in which they are asked for; each name is asked for once."""

    def tensor(self, name: str, parts: Sequence[str], make: Make, /) -> torch.Tensor:
        """What `make` makes of the checkpoint's tensors `parts`; its values may not be there yet.

        Of a single tensor `make` changes nothing but the dtype.
        """

    def linear(self, name: str, parts: Sequence[str], weight_format: WeightFormat, /) -> tuple[Panels, ...]:
        """Linear layers of the same input, whose outputs follow one another, as one or as several.

        `parts` are names in the checkpoint without `.weight` and `.bias`; biases are taken where there are any. Layers
        that the checkpoint holds as integers keep them where the kernels take them, whatever `weight_format` says.
        """

    @property
    def mark(self) -> "Mark | None":
        """What must have arrived until everything that was given so far may be used; `None`: it is there."""

    def start(self) -> "WeightStream[OpenFile] | None":
        """After everything was asked for: begins to fetch what is not there yet."""


class CheckpointWeights:
    """Packs the tensors of a checkpoint into memory of this process, one after the other.

    Beside the packed model lie the originals of one fused projection.
    """

    mark = None

    def __init__(self, tensors: CheckpointTensors, quantized: QuantizedLayers | None = None) -> None:
        self._tensors = tensors
        self._quantized = quantized

    def tensor(self, _name: str, parts: Sequence[str], make: Make) -> torch.Tensor:
        return make(*(self._tensors.read(part) for part in parts))

    def linear(self, _name: str, parts: Sequence[str], weight_format: WeightFormat) -> tuple[Panels, ...]:
        names, quantized = self._tensors.names, self._quantized
        biases = [self._tensors.read(name) if (name := f"{part}.bias") in names else None for part in parts]
        form = quantized.form(parts) if quantized is not None else None
        if quantized is None or form is None:
            return (pack_fused([self._weight(part) for part in parts], weight_format, biases=biases),)
        weight = fused([coded_weight(quantized.codes(part), form) for part in parts])
        bias = fused_bias(biases, [quantized.shape(part)[0] for part in parts])
        return (pack_codes(weight, form.weight_format, group_size=form.group_size, bias=bias),)

    def start(self) -> None:
        """All of it is there."""

    def _weight(self, part: str) -> torch.Tensor:
        if self._quantized is not None and part in self._quantized.layers:
            return self._quantized.codes(part).dequantize()
        return self._tensors.read(f"{part}.weight")


class CountedWeights:
    """Weights without values, in the shapes and layouts that `CheckpointWeights` would give, and no time spent."""

    mark = None

    def __init__(self, tensors: CheckpointTensors, quantized: QuantizedLayers | None = None) -> None:
        self._tensors = tensors
        self._quantized = quantized

    def tensor(self, _name: str, parts: Sequence[str], make: Make) -> torch.Tensor:
        return make(*(self._empty(part) for part in parts))

    def linear(self, _name: str, parts: Sequence[str], weight_format: WeightFormat) -> tuple[Panels, ...]:
        shapes = [self._shape(part) for part in parts]
        shape = (shapes[0][1], sum(out_features for out_features, _ in shapes))
        has_bias = any(f"{part}.bias" in self._tensors.names for part in parts)
        form = self._quantized.form(parts) if self._quantized is not None else None
        if form is None:
            return (panels_without_data(weight_format, *shape, has_bias=has_bias),)
        return (
            panels_without_data(
                form.weight_format,
                *shape,
                has_bias=has_bias,
                has_offsets=form.has_offsets,
                group_size=form.group_size,
            ),
        )

    def start(self) -> None:
        """There is nothing to fetch."""

    def _shape(self, part: str) -> tuple[int, ...]:
        if self._quantized is not None and part in self._quantized.layers:
            return self._quantized.shape(part)
        return self._tensors.shape(f"{part}.weight")

    def _empty(self, name: str) -> torch.Tensor:
        return torch.empty(self._tensors.shape(name), dtype=self._tensors.dtype(name), device="meta")


class RecordedWeights:
    """Hands what another source gives to `write`, name by name, and keeps none of it."""

    mark = None

    def __init__(self, source: WeightSource, write: Callable[[str, torch.Tensor | Panels], None]) -> None:
        self._source = source
        self._write = write

    def tensor(self, name: str, parts: Sequence[str], make: Make) -> torch.Tensor:
        tensor = self._source.tensor(name, parts, make)
        self._write(name, tensor)
        return tensor.to("meta")

    def linear(self, name: str, parts: Sequence[str], weight_format: WeightFormat) -> tuple[Panels, ...]:
        (panels,) = self._source.linear(name, parts, weight_format)
        self._write(name, panels)
        return (without_data(panels),)

    def start(self) -> None:
        """All of it is written."""


def without_data(panels: Panels) -> Panels:
    """Format, shape and bytes of a packed layer."""
    return panels_without_data(
        panels.format,
        panels.in_features,
        panels.out_features,
        has_bias=panels.bias is not None,
        has_offsets=panels.offsets is not None,
        group_size=panels.group_size,
    )


def fused_bias(biases: Sequence[torch.Tensor | None], sizes: Sequence[int]) -> torch.Tensor | None:
    """The biases of layers whose outputs follow one another; a missing one is zero, and none are none."""
    if all(bias is None for bias in biases):
        return None
    return torch.cat([torch.zeros(size) if bias is None else bias for bias, size in zip(biases, sizes, strict=True)])


def has_own_head(tensors: CheckpointTensors, *, head: str, embedding: str, is_tied: bool) -> bool:
    """Whether the head is another matrix than the embedding.

    As in transformers, a head that is there and differs is one of its own, also where the configuration ties it.
    """
    if not is_tied or head not in tensors.names:
        return not is_tied
    return not torch.equal(tensors.read(head), tensors.read(embedding))
