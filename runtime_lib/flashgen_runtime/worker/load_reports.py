"""What is said of a model that was loaded, or that could not be."""

import logging
from typing import NamedTuple

from flashgen_runtime.errors import ConfigError, RequestError, ServingError
from flashgen_runtime.logs import fields
from flashgen_runtime.worker.residency import Slot

log = logging.getLogger(__name__)


class Problem(NamedTuple):
    """Why a model cannot be loaded."""

    message: str

    # No further attempt is of use.
    is_final: bool


def logged_problem(slot: Slot, error: Exception) -> Problem:
    """Logs why a model cannot be loaded, a bug of ours with its traceback, and gives it as data."""
    is_expected = isinstance(error, ServingError | OSError | MemoryError)
    message = str(error) if is_expected and str(error) else type(error).__name__
    log.error("cannot be loaded: %s", message, extra=fields(model=slot.id), exc_info=None if is_expected else error)
    return Problem(message, is_final=isinstance(error, ConfigError))


def cannot_be_loaded(slot: Slot) -> RequestError:
    """Why a model that has failed is not there."""
    assert slot.failure is not None, "it has failed"
    message = f"the model `{slot.id}` cannot be loaded: {slot.failure.problem}"
    if slot.failure.is_final:
        return RequestError(message, kind="invalid_request", param="model")
    return RequestError(message, kind="unavailable")


def log_loaded(slot: Slot, *, seconds: float) -> None:
    """Logs how a model runs."""
    status = slot.status
    what = {
        "model": status.id,
        "task": status.task,
        "dtype": status.dtype,
        "quantization": status.quantization,
        "path": status.path,
        "path_reason": status.path_reason,
        "kv_cache_dtype": status.kv_cache_dtype,
        "kernels": status.kernels,
        "speculative": status.speculative,
        "max_context": status.max_context,
        "chat_template": status.chat_template,
        "bytes": status.memory_bytes,
        "seconds": f"{seconds:.1f}",
    }
    # Not every task has all of them.
    log.info("loaded", extra=fields(**{name: value for name, value in what.items() if value != ""}))
    if status.task == "text-generation" and status.chat_template == "none":
        log.info("no chat template: message contents are joined by newlines", extra=fields(model=status.id))
