"""Reads checkpoints: `load_model` gives a model, `load_dict` and `save_dict` plain tensors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashgen_runtime.loader.base import LoadedModel
    from flashgen_runtime.loader.materialize import load_model
    from flashgen_runtime.loader.state_dict import load_dict, save_dict

__all__ = ["LoadedModel", "load_dict", "load_model", "save_dict"]

_MODULES = {"LoadedModel": "base", "load_dict": "state_dict", "load_model": "materialize", "save_dict": "state_dict"}


def __getattr__(name: str) -> Any:
    """A public name when it is asked for: the store and the headers are read without torch, which takes a second."""
    if name not in _MODULES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
