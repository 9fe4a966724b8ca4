"""Runs `flashgen` as a user does, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def flashgen(*arguments: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """In `folder`, with a cache of its own there."""
    return subprocess.run(
        [sys.executable, "-m", "flashgen", *arguments],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / ".cache"), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
