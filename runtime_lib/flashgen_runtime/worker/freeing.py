"""Gives a model's memory back to the system, to the last page."""

import gc
import logging
import weakref

from flashgen_runtime.freed_memory import give_back_freed_memory
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
    give_back_freed_memory()


def free_after_failure() -> None:
    """Frees what an attempt to load has left in cycles, a traceback's frames among them. Blocks."""
    gc.collect()
    give_back_freed_memory()
