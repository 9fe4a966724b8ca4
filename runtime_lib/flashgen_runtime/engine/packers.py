"""How the modules that replace a transformers model's own get their packed weights: made now, or out of a file.

Surgery walks a model in an order of its own and asks a packer for one packed layer after the other. What it was given
can be written down, and the next load takes the same layers from the file in the same order.
"""

import json
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Protocol

import torch

from flashgen_runtime.config import Quantization
from flashgen_runtime.engine.file_weights import BIAS, PANELS, SCALES, panel_tensors
from flashgen_runtime.engine.native_config import dtype_name
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.kernels.panels import Panels, WeightFormat, pack, pack_fused, panels_without_data
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.aligned_file import Write
from flashgen_runtime.loader.prepared import (
    PreparedFolder,
    PreparedKind,
    can_prepare,
    find_prepared,
    make_prepared,
    prepared_folder,
)
from flashgen_runtime.loader.reader import OpenFile
from flashgen_runtime.loader.stream import stream
from flashgen_runtime.logs import fields

log = logging.getLogger(__name__)

# Raised when surgery asks for other layers, or in another order.
VERSION = "1"

LAYERS_KEY = "flashgen.layers"

Biases = Sequence[torch.Tensor | None]


class Packer(Protocol):
    """Gives packed layers; each call is for the next one."""

    def pack(self, weights: Sequence[torch.Tensor], weight_format: WeightFormat, *, biases: Biases = ()) -> Panels:
        """As `kernels.panels.pack_fused`; one matrix alone is packed as it is."""


class MemoryPacker:
    """Packs into memory of this process, and remembers what it gave."""

    def __init__(self) -> None:
        self.made: list[Panels] = []

    def pack(self, weights: Sequence[torch.Tensor], weight_format: WeightFormat, *, biases: Biases = ()) -> Panels:
        self.made.append(_packed(weights, weight_format, biases))
        return self.made[-1]


class PreparedPacker:
    """Takes layers out of a prepared file, whatever the values of the matrices that it is asked to pack.

    A layer of another shape than the file's is packed: then the file is of no use, and `is_stale`.
    """

    def __init__(self, file: OpenFile, layers: Sequence[str]) -> None:
        self._file = file
        self._layers = layers
        self._next = 0
        self.is_stale = False

    def pack(self, weights: Sequence[torch.Tensor], weight_format: WeightFormat, *, biases: Biases = ()) -> Panels:
        number, self._next = self._next, self._next + 1
        out_features, in_features = sum(len(weight) for weight in weights), weights[0].shape[1]
        has_bias = any(bias is not None for bias in biases)
        expected = panels_without_data(weight_format, in_features, out_features, has_bias=has_bias)
        if self.is_stale or number >= len(self._layers) or self._layers[number] != _shape_of(expected):
            self.is_stale = True
            return _packed(weights, weight_format, biases)
        return Panels(
            format=weight_format,
            in_features=in_features,
            out_features=out_features,
            group_size=expected.group_size,
            data=self._file.tensor(f"{number}{PANELS}"),
            scales=self._file.tensor(f"{number}{SCALES}") if expected.scales is not None else None,
            bias=self._file.tensor(f"{number}{BIAS}") if has_bias else None,
        )


class SurgeryFile:
    """The prepared file of one checkpoint's packed layers.

    Args:
        path: the checkpoint's folder.
        dtype: of the weights that are not quantised.
        quantization: of the linear layers.
        access: where prepared files lie.
    """

    def __init__(
        self, path: Path, *, dtype: torch.dtype, quantization: Quantization | None, access: WeightAccess
    ) -> None:
        folder = prepared_folder(access.store, path)
        # Which layers there are, and in which order, is up to transformers' classes too.
        self._folder: PreparedFolder = folder._replace(
            identity=" ".join((folder.identity, version("transformers"), VERSION))
        )
        self._kind = PreparedKind(dtype_name(dtype), quantization or "", "panels")
        self._path = path
        self._access = access

    def packer(self) -> PreparedPacker | MemoryPacker:
        """Out of the file if it is there."""
        header = find_prepared(self._folder, self._kind)
        if header is None or not self._access.is_sound(header):
            return MemoryPacker()
        try:
            layers = json.loads(header.metadata[LAYERS_KEY])
            file = self._access.open(header.path)
        except (KeyError, ValueError, WeightsError):
            return MemoryPacker()
        stream([file], threads=self._access.threads).start().wait()
        return PreparedPacker(file, layers)

    def keep(self, packer: PreparedPacker | MemoryPacker) -> None:
        """Writes the file beside the forward passes, if the packer had to make the layers."""
        if isinstance(packer, PreparedPacker):
            if packer.is_stale:
                (self._folder.path / self._kind.file_name).unlink(missing_ok=True)
        elif can_prepare(self._folder):
            Thread(target=self._write, args=(packer.made,), name="prepare", daemon=True).start()

    def _write(self, made: Sequence[Panels]) -> None:
        shapes = {
            name: tensor
            for number, panels in enumerate(made)
            for name, tensor in panel_tensors(str(number), panels).items()
        }

        def give(write: Write) -> None:
            for name, tensor in shapes.items():
                write(name, tensor)

        metadata = {LAYERS_KEY: json.dumps([_shape_of(panels) for panels in made])}
        try:
            make_prepared(self._folder, self._kind, shapes, give, metadata=metadata)
        except WeightsError as error:
            log.warning("weights are packed at every start", extra=fields(path=str(self._path), reason=str(error)))
        else:
            log.info("weights are prepared", extra=fields(path=str(self._path), kind=self._kind.file_name))


def _packed(weights: Sequence[torch.Tensor], weight_format: WeightFormat, biases: Biases) -> Panels:
    if len(weights) == 1:
        return pack(weights[0], weight_format, bias=biases[0] if biases else None)
    return pack_fused(weights, weight_format, biases=biases)


def _shape_of(panels: Panels) -> str:
    """Everything about a layer but its values."""
    has_bias = "bias" if panels.bias is not None else "plain"
    return f"{panels.format.name} {panels.in_features} {panels.out_features} {panels.group_size} {has_bias}"
