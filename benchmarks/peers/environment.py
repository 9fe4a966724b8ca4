"""Environments of the peers' own: one venv each, under the benchmarks' cache, made on first use."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.models import CACHE

# Installed before anything else and held: an unpinned torch brings gigabytes for cards that are not here.
TORCH = "torch==2.13.0"


def environment(name: str, *steps: Sequence[str], without: Sequence[str] = ()) -> Path:
    """The `bin` folder of a venv.

    Args:
        name: of the venv's folder.
        steps: requirements of one `pip install` each.
        without: packages to be removed again, which others bring and nothing here needs.
    """
    folder = CACHE / "venvs" / name
    done = folder / "installed.txt"
    wanted = "\n".join(" ".join(step) for step in steps)
    if done.exists() and done.read_text() == wanted:
        return folder / "bin"
    print(f"installing {wanted!r} into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(folder)])
    python = str(folder / "bin" / "python")
    constraints = folder / "constraints.txt"
    constraints.write_text(TORCH + "\n")
    for step in steps:
        run([python, "-m", "pip", "install", "--quiet", "-c", str(constraints), *step])
    if without:
        run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *without])
    done.write_text(wanted)
    return folder / "bin"


def run(command: Sequence[str]) -> None:
    """Runs a command, its output to stderr; raises if it fails."""
    subprocess.run(command, check=True, stdout=sys.stderr)
