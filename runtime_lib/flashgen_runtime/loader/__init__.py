"""Reads checkpoints: `load_model` gives a model, `load_dict` and `save_dict` plain tensors. Importing imports torch."""

from typing import TYPE_CHECKING, Any

from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.state_dict import load_dict, save_dict

if TYPE_CHECKING:
    from flashgen_runtime.loader.materialize import load_model

__all__ = ["LoadedModel", "load_dict", "load_model", "save_dict"]


def __getattr__(name: str) -> Any:
    """`load_model` when it is asked for: it imports transformers' model classes, which native models do not need."""
    if name != "load_model":
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    from flashgen_runtime.loader.materialize import load_model

    return load_model
