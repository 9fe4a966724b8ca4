"""Reads checkpoints: `load_model` gives a model, `load_dict` and `save_dict` plain tensors. Importing imports torch."""

from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.materialize import load_model
from flashgen_runtime.loader.state_dict import load_dict, save_dict

__all__ = ["LoadedModel", "load_dict", "load_model", "save_dict"]
