"""Reads checkpoints: `load_model(path, *, dtype, device) -> LoadedModel`. Importing the package imports torch."""

from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.materialize import load_model

__all__ = ["LoadedModel", "load_model"]
