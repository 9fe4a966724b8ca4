"""Weights that are used as they lie in files: prepared panels, or the rows of a checkpoint. No transformers.

The files' memory is made at once and filled in the order of use while the first forward pass runs: small tensors that
are needed in another form are read beforehand.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from flashgen_runtime.engine.weight_source import Make, Mark
from flashgen_runtime.kernels.panels import Panels, WeightFormat, in_place
from flashgen_runtime.loader.reader import OpenFile
from flashgen_runtime.loader.stream import WeightStream, stream
from flashgen_runtime.loader.tensors import CheckpointTensors

# How the tensors of packed layers are called in prepared files.
PANELS, SCALES, OFFSETS, BIAS = ".panels", ".scales", ".offsets", ".bias"


def panel_tensors(name: str, panels: Panels) -> dict[str, torch.Tensor]:
    """The tensors of a packed layer by their names in a prepared file."""
    found = {
        name + PANELS: panels.data,
        name + SCALES: panels.scales,
        name + OFFSETS: panels.offsets,
        name + BIAS: panels.bias,
    }
    return {each: tensor for each, tensor in found.items() if tensor is not None}


class _Arrivals:
    """The order in which ranges of files are used."""

    def __init__(self, threads: int) -> None:
        self._order: list[tuple[OpenFile, int, int]] = []
        self._threads = threads

    def add(self, file: OpenFile, name: str) -> None:
        entry, start = file.header.tensors[name], file.header.data_start
        if entry.end > entry.start:
            self._order.append((file, start + entry.start, start + entry.end))

    @property
    def mark(self) -> Mark | None:
        if not self._order:
            return None
        file, _, end = self._order[-1]
        return Mark(file, end)

    def stream(self, files: Sequence[OpenFile]) -> WeightStream[OpenFile]:
        return stream(files, self._order, threads=self._threads).start()


class PreparedWeights:
    """The weights of a prepared file, which holds just those that the model asks for.

    Args:
        file: opened, not fetched.
        shapes: of all linear layers: what `CountedWeights` gives, by name.
        threads: how many fetch.
    """

    def __init__(self, file: OpenFile, shapes: Mapping[str, Panels], *, threads: int) -> None:
        self._file = file
        self._shapes = shapes
        self._arrivals = _Arrivals(threads)

    def tensor(self, name: str, _parts: Sequence[str], _make: Make) -> torch.Tensor:
        return self._take(name)

    def linear(self, name: str, _parts: Sequence[str], _weight_format: WeightFormat) -> tuple[Panels, ...]:
        expected = self._shapes[name]
        panels = Panels(
            format=expected.format,
            in_features=expected.in_features,
            out_features=expected.out_features,
            group_size=expected.group_size,
            data=self._take(name + PANELS),
            scales=self._take(name + SCALES) if expected.scales is not None else None,
            offsets=self._take(name + OFFSETS) if expected.offsets is not None else None,
            bias=self._take(name + BIAS) if expected.bias is not None else None,
        )
        return (panels,)

    @property
    def mark(self) -> Mark | None:
        return self._arrivals.mark

    def start(self) -> WeightStream[OpenFile]:
        return self._arrivals.stream([self._file])

    def _take(self, name: str) -> torch.Tensor:
        self._arrivals.add(self._file, name)
        return self._file.tensor(name)


class RowWeights:
    """The weights of a checkpoint in the dtype that it has, row by row as they lie: no copy, no preparation.

    Args:
        tensors: of the checkpoint.
        files: its files, opened, not fetched.
        threads: how many fetch.
    """

    def __init__(self, tensors: CheckpointTensors, files: Mapping[Path, OpenFile], *, threads: int) -> None:
        self._tensors = tensors
        self._files = files
        self._arrivals = _Arrivals(threads)

    def tensor(self, _name: str, parts: Sequence[str], make: Make) -> torch.Tensor:
        return self._take(parts[0]) if self._is_as_it_lies(parts, make) else make(*map(self._tensors.read, parts))

    def linear(self, _name: str, parts: Sequence[str], _weight_format: WeightFormat) -> tuple[Panels, ...]:
        return tuple(self._rows(part) for part in parts)

    @property
    def mark(self) -> Mark | None:
        return self._arrivals.mark

    def start(self) -> WeightStream[OpenFile]:
        return self._arrivals.stream(list(self._files.values()))

    def _rows(self, part: str) -> Panels:
        bias = f"{part}.bias"
        return in_place(
            self._take(f"{part}.weight"), bias=self._tensors.read(bias) if bias in self._tensors.names else None
        )

    def _take(self, name: str) -> torch.Tensor:
        file = self._files[self._tensors.file_of(name)]
        self._arrivals.add(file, name)
        return file.tensor(name)

    def _is_as_it_lies(self, parts: Sequence[str], make: Make) -> bool:
        """Whether the model wants one tensor of the checkpoint in its own dtype and shape."""
        if len(parts) > 1:
            return False
        lies = torch.empty(self._tensors.shape(parts[0]), dtype=self._tensors.dtype(parts[0]), device="meta")
        wanted = make(lies)
        return wanted is lies or (wanted.dtype is lies.dtype and wanted.shape == lies.shape)
