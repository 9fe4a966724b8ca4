"""Prepared files of any checkpoint: panels for our own classes, aligned rows for every reader. No transformers."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flashgen_runtime.config import DType, Quantization
from flashgen_runtime.engine.native_config import UnsupportedConfigError, asked_dtype, dtype_name, reason_against
from flashgen_runtime.engine.native_decoder import decoder_recipe
from flashgen_runtime.engine.native_encoder import encoder_recipe
from flashgen_runtime.engine.native_loading import Recipe, make_weights
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.loader.aligned_file import Write
from flashgen_runtime.loader.checkpoint import is_encoder, read_json
from flashgen_runtime.loader.prepared import Layout, MadeFile, PreparedKind, make_prepared, prepared_folder
from flashgen_runtime.loader.store import Store
from flashgen_runtime.loader.tensors import CheckpointTensors


class PreparedInfo(NamedTuple):
    """A prepared file."""

    path: Path
    num_bytes: int

    # "auto" in the generic layout: each tensor's own.
    dtype: str

    # "int8", "int4" or empty.
    quantization: str
    layout: Layout
    is_new: bool


_FLOATS = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16))

# What stands before the layers and behind them, in the names of common architectures.
_BEFORE = re.compile(r"embed|\bwte\b|\bwpe\b")
_BEHIND = re.compile(r"lm_head|embed_out|^(model\.|transformer\.|gpt_neox\.)?(final_layer_norm|norm|ln_f)\b")


def recipe_of(path: Path, *, dtype: DType, quantization: Quantization | None) -> Recipe[Any] | None:
    """How the weights of a checkpoint are made; `None` where none of our own classes runs it.

    Raises `WeightsError` for a checkpoint that is broken.
    """
    tree = read_json(path / "config.json")
    if current_isa() is None:
        return None
    if is_encoder(tree.get("model_type")):
        try:
            return encoder_recipe(path, dtype=dtype, quantization=quantization)[1]
        except UnsupportedConfigError:
            return None
    if reason_against(tree) is not None:
        return None
    return decoder_recipe(path, dtype=dtype, quantization=quantization)[1]


def best_layout(path: Path) -> Layout | None:
    """What serves a checkpoint faster than its own files on this machine; `None`: nothing does."""
    return None if recipe_of(path, dtype="auto", quantization=None) is None else "panels"


def prepare(
    path: Path,
    store: Store,
    *,
    dtype: DType = "auto",
    quantization: Quantization | None = None,
    layout: Layout = "panels",
) -> PreparedInfo:
    """Makes a prepared file of a checkpoint unless it is there.

    Args:
        path: the checkpoint's folder, in the store or elsewhere.
        store: where the file goes.
        dtype: of the weights that are not quantised; "auto" keeps the checkpoint's own.
        quantization: of the linear layers; for panels only.
        layout: panels are for checkpoints that our own classes run (`best_layout`).

    Raises:
        WeightsError: the checkpoint is broken, cannot have this form, or the disk is full.
    """
    if layout == "generic":
        if quantization is not None:
            raise WeightsError(path, f"`{quantization}` is for our own kernels: the generic layout keeps floats")
        return _make_generic(path, store, dtype)
    recipe = recipe_of(path, dtype=dtype, quantization=quantization)
    if recipe is None:
        model_type = read_json(path / "config.json").get("model_type")
        reason = "there are no kernels for this processor" if current_isa() is None else f"it is a `{model_type}`"
        raise WeightsError(path, f"has no panels: only our own classes use them, and {reason}; prepare it as `generic`")
    return _info(make_weights(recipe, store), recipe.kind)


def execution_order(names: list[str]) -> list[str]:
    """Tensors in about the order of a forward pass: embeddings, layers by number, last norm and head."""

    def key(name: str) -> tuple[int, list[tuple[int, int, str]]]:
        section = 0 if _BEFORE.search(name) else 2 if _BEHIND.search(name) else 1
        parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
        return section, parts

    return sorted(names, key=key)


def _make_generic(path: Path, store: Store, dtype: DType) -> PreparedInfo:
    tensors = CheckpointTensors(path)
    wanted = asked_dtype(read_json(path / "config.json"), dtype) if dtype != "auto" else None
    shapes = {name: _shape(tensors, name, wanted) for name in execution_order(list(tensors.names))}

    def give(write: Write) -> None:
        for name, shape in shapes.items():
            write(name, tensors.read(name).to(shape.dtype))

    kind = PreparedKind("auto" if wanted is None else dtype_name(wanted), "", "generic")
    return _info(make_prepared(prepared_folder(store, path), kind, shapes, give), kind)


def _info(made: MadeFile, kind: PreparedKind) -> PreparedInfo:
    path = made.header.path
    return PreparedInfo(path, path.stat().st_size, *kind, made.is_new)


def _shape(tensors: CheckpointTensors, name: str, wanted: torch.dtype | None) -> torch.Tensor:
    dtype = tensors.dtype(name)
    is_converted = wanted is not None and dtype in _FLOATS
    return torch.empty(tensors.shape(name), dtype=wanted if is_converted else dtype, device="meta")
