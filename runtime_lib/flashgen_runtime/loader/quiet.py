"""Keeps transformers from writing to the terminal what this library says by exceptions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

# Its functions have no annotations.
logging: Any = transformers_logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings inside; transformers' settings are restored afterwards."""
    verbosity = logging.get_verbosity()
    has_progress_bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_progress_bar:
            logging.enable_progress_bar()
