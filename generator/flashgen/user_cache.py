"""Where flashgen keeps what it can make again: compiled templates, projects of `flashgen run`."""

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """`$XDG_CACHE_HOME/flashgen` or `~/.cache/flashgen`; `None` for a user without a home."""
    base = environ.get("XDG_CACHE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "flashgen"
    try:
        return Path.home() / ".cache" / "flashgen"
    except RuntimeError:
        return None
