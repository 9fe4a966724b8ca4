"""Finds the weights of a native model in the best form that is there, and makes a better one.

A model of our own classes is described by a `Recipe`: which weights it asks for, in its order. The same recipe counts
bytes, packs into a prepared file, and takes weights out of it.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from flashgen_runtime.config import Quantization
from flashgen_runtime.engine.file_weights import PreparedWeights, RowWeights, panel_tensors
from flashgen_runtime.engine.native_config import dtype_name
from flashgen_runtime.engine.quantized_layers import QuantizedLayers
from flashgen_runtime.engine.weight_source import (
    CheckpointWeights,
    CountedWeights,
    RecordedWeights,
    WeightSource,
    without_data,
)
from flashgen_runtime.errors import NotWrittenError, WeightsError
from flashgen_runtime.freed_memory import give_back_freed_memory
from flashgen_runtime.kernels.panels import Panels
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.aligned_file import Write
from flashgen_runtime.loader.prepared import (
    MadeFile,
    PreparedKind,
    can_prepare,
    find_prepared,
    make_prepared,
    prepared_folder,
)
from flashgen_runtime.loader.reader import OpenFile
from flashgen_runtime.loader.store import Store
from flashgen_runtime.loader.stream import WeightStream
from flashgen_runtime.loader.tensors import CheckpointTensors
from flashgen_runtime.logs import fields

log = logging.getLogger(__name__)

W = TypeVar("W")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Generic[W]):
    """What a native model is made of."""

    # The checkpoint's folder, and its tensors, which are those of the model's configuration.
    path: Path
    tensors: CheckpointTensors
    dtype: torch.dtype
    quantization: Quantization | None

    # Layers that the checkpoint itself holds quantised.
    quantized: QuantizedLayers | None = None

    # Asks a source for everything, in the order of a forward pass.
    build: Callable[[WeightSource], W]

    @property
    def kind(self) -> PreparedKind:
        # Words and nothing else: it becomes a part of a file's name.
        words = re.findall(r"\w+", self.precision)
        return PreparedKind(dtype_name(self.dtype), "-".join(words), "panels")

    @property
    def precision(self) -> str:
        """How the linear layers run, if not in `dtype`: "int8", or "awq int4 g128"."""
        if self.quantized is None:
            return self.quantization or ""
        return self.quantized.running(dtype_name(self.dtype))

    @property
    def is_as_it_lies(self) -> bool:
        """Whether the checkpoint's rows are what the kernels may read."""
        matrices = (name for name in self.tensors.expected if len(self.tensors.shape(name)) == 2)
        is_quantized = self.quantization is not None or self.quantized is not None
        return not is_quantized and all(self.tensors.dtype(name) is self.dtype for name in matrices)

    def shapes(self) -> "Shapes":
        """What `build` asks for, without values."""
        shapes = Shapes({}, {})

        def note(name: str, found: torch.Tensor | Panels) -> None:
            if isinstance(found, Panels):
                shapes.linears[name] = without_data(found)
                shapes.tensors.update(panel_tensors(name, shapes.linears[name]))
            else:
                shapes.tensors[name] = found

        self.build(RecordedWeights(CountedWeights(self.tensors, self.quantized), note))
        return shapes


class Shapes(NamedTuple):
    """The weights of a model on the meta device, in their order."""

    # Every tensor of a prepared file.
    tensors: dict[str, torch.Tensor]
    linears: dict[str, Panels]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class FoundWeights(NamedTuple, Generic[W]):
    """A native model's weights."""

    weights: W

    # Of bytes that are on their way; `None`: all are there.
    stream: WeightStream[OpenFile] | None

    # Makes better ones, where these are the checkpoint's rows.
    preparation: "Preparation[W] | None" = None


class Preparation(Generic[W]):
    """Makes a prepared file beside the forward passes of a model that runs on its checkpoint's rows."""

    def __init__(self, recipe: Recipe[W], access: WeightAccess, rows: WeightStream[OpenFile]) -> None:
        """Begins when `rows` have arrived: until then the disk has enough to do."""
        self._recipe = recipe
        self._access = access
        self._is_closed = False
        self._is_done = False
        Thread(target=self._run, args=(rows,), name="prepare", daemon=True).start()

    @property
    def is_done(self) -> bool:
        """Whether `take` gives weights."""
        return self._is_done

    def take(self) -> FoundWeights[W] | None:
        """The weights of the file, once it is there; `None` if somebody has removed it since."""
        return _find(self._recipe, self._access)

    def close(self) -> None:
        """Nobody wants the result any more."""
        self._is_closed = True

    def _run(self, rows: WeightStream[OpenFile]) -> None:
        path = self._recipe.path
        try:
            rows.wait()
            if self._is_closed:
                return
            made = make_weights(self._recipe, self._access.store)
        except WeightsError as error:
            log.warning("weights stay as they lie", extra=fields(path=str(path), reason=str(error)))
            return
        self._is_done = not self._is_closed
        if made.is_new:
            log.info("weights are prepared", extra=fields(path=str(path), kind=self._recipe.kind.file_name))


def find_weights(recipe: Recipe[W], access: WeightAccess | None) -> FoundWeights[W]:
    """The best form of a model's weights that is there: prepared, else the checkpoint's rows, else made now.

    Args:
        recipe: of the model.
        access: `None` packs the checkpoint into private memory.

    Raises:
        WeightsError: a file is missing or broken.
    """
    if access is None:
        return _packed(recipe)
    found = _find(recipe, access)
    if found is not None:
        return found
    access.check_checkpoint(recipe.path)
    folder = prepared_folder(access.store, recipe.path)
    if recipe.is_as_it_lies and (access.starts_with_rows or not can_prepare(folder)):
        return _rows(recipe, access, will_prepare=can_prepare(folder))
    if not can_prepare(folder):
        reason = f"{access.store.root} cannot be written"
        log.warning("weights are packed at every start", extra=fields(path=str(recipe.path), reason=reason))
        return _packed(recipe)
    log.info("preparing weights", extra=fields(path=str(recipe.path), kind=recipe.kind.file_name))
    try:
        make_weights(recipe, access.store)
    except NotWrittenError as error:
        # The model can be served all the same.
        log.warning("weights are packed at every start", extra=fields(path=str(recipe.path), reason=str(error)))
        return _packed(recipe)
    found = _find(recipe, access)
    if found is None:
        raise WeightsError(recipe.path, "was changed while its weights were prepared")
    return found


def make_weights(recipe: Recipe[Any], store: Store) -> MadeFile:
    """The prepared file of a native model, made unless it is there; raises as `make_prepared`."""
    folder = prepared_folder(store, recipe.path)
    shapes = recipe.shapes().tensors

    def give(write: Write) -> None:
        def write_all(name: str, found: torch.Tensor | Panels) -> None:
            tensors: Mapping[str, torch.Tensor] = (
                panel_tensors(name, found) if isinstance(found, Panels) else {name: found}
            )
            for each, tensor in tensors.items():
                write(each, tensor)

        recipe.build(RecordedWeights(CheckpointWeights(recipe.tensors, recipe.quantized), write_all))
        recipe.tensors.check_unchanged()

    try:
        return make_prepared(folder, recipe.kind, shapes, give)
    finally:
        # What was packed piece by piece is about to be mapped: together they would be twice as much.
        give_back_freed_memory()


def prepared_path(recipe: Recipe[Any], store: Store) -> Path | None:
    """The file that `find_weights` would take, if it is there."""
    header = find_prepared(prepared_folder(store, recipe.path), recipe.kind, recipe.shapes().tensors)
    return None if header is None else header.path


def _packed(recipe: Recipe[W]) -> FoundWeights[W]:
    """In private memory, made now."""
    weights = recipe.build(CheckpointWeights(recipe.tensors, recipe.quantized))
    recipe.tensors.check_unchanged()
    return FoundWeights(weights, None)


def _find(recipe: Recipe[W], access: WeightAccess) -> FoundWeights[W] | None:
    shapes = recipe.shapes()
    folder = prepared_folder(access.store, recipe.path)
    header = find_prepared(folder, recipe.kind, shapes.tensors)
    if header is None:
        return None
    if not access.is_sound(header):
        log.warning("a damaged prepared file is thrown away", extra=fields(path=str(header.path)))
        header.path.unlink(missing_ok=True)
        return None
    source = PreparedWeights(access.open(header.path), shapes.linears, threads=access.threads)
    return FoundWeights(recipe.build(source), source.start())


def _rows(recipe: Recipe[W], access: WeightAccess, *, will_prepare: bool) -> FoundWeights[W]:
    files = {path: access.open(path) for path in recipe.tensors.files}
    source = RowWeights(recipe.tensors, files, threads=access.threads)
    weights = recipe.build(source)
    # What was read at once belongs to the files that are about to arrive.
    recipe.tensors.check_unchanged()
    rows = source.start()
    what = "until they are prepared" if will_prepare else f"{access.store.root} cannot be written"
    log.info("weights are used as they lie, slower from 8 to 48 rows", extra=fields(path=str(recipe.path), why=what))
    return FoundWeights(weights, rows, Preparation(recipe, access, rows) if will_prepare else None)
