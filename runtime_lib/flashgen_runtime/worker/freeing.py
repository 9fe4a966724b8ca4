"""Gives a model's memory back to the system, to the last page."""

import ctypes
import gc
import logging
import weakref

from flashgen_runtime.models.base import ServedModel

log = logging.getLogger(__name__)


def close_model(last_reference: list[ServedModel]) -> None:
    """Closes a model and frees what it took. Blocks.

    Args:
        last_reference: the model alone, and nobody else has it; empty afterwards.
    """
    model = last_reference.pop()
    still_there = weakref.ref(model)
    try:
        model.close()
    except Exception:
        log.exception("a model could not be closed")
    del model
    # Collecting holds the interpreter for a tenth of a second, which the other models' requests would feel.
    if still_there() is not None:
        gc.collect()
    trim()


def free_after_failure() -> None:
    """Frees what an attempt to load has left in cycles, a traceback's frames among them. Blocks."""
    gc.collect()
    trim()


def trim() -> None:
    """Has the C library give back pages that nobody uses; another C library than glibc keeps them."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
