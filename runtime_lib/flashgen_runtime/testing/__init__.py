"""Fakes with simple laws, for the tests of generated projects and for benchmarks. Never imports torch."""

import importlib
from typing import TYPE_CHECKING, Any

from flashgen_runtime.testing.embeddings import FAKE_DIMENSIONS, FakeEmbeddings, fake_vector
from flashgen_runtime.testing.engine import FakeEngine
from flashgen_runtime.testing.models import FakeLibrary, fake_manager
from flashgen_runtime.testing.tokenizer import CharacterTokenizer

if TYPE_CHECKING:
    from flashgen_runtime.testing.callers import is_freed_when_caller_leaves
    from flashgen_runtime.testing.service import FakePool, fake_service

__all__ = [
    "FAKE_DIMENSIONS",
    "CharacterTokenizer",
    "FakeEmbeddings",
    "FakeEngine",
    "FakeLibrary",
    "FakePool",
    "fake_manager",
    "fake_service",
    "fake_vector",
    "is_freed_when_caller_leaves",
]

# Imported on first use: they need FastAPI, which a worker's environment does not have.
_OF_THE_API_SIDE = {"FakePool": "service", "fake_service": "service", "is_freed_when_caller_leaves": "callers"}


def __getattr__(name: str) -> Any:
    if name not in _OF_THE_API_SIDE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_OF_THE_API_SIDE[name]}"), name)
