"""Real models that are swapped, and what the system says about the memory that they take."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# What the interpreter itself allocates while it serves requests.
SLACK_BYTES = 2 << 20


@pytest.mark.slow
def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    """Six models where two fit, first loads that prepare weights among them: private and mapped pages are counted."""
    command = [sys.executable, "-m", "tests.swap_process", str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["failed"] == 0
    assert seen["peak"] <= seen["budget"] + SLACK_BYTES
    # Memory was short, and it was used.
    assert seen["peak"] > seen["budget"] / 2
    assert seen["all_models"] > 2 * seen["budget"]
    # Less than half of the smallest model.
    assert seen["left"] <= 5 * SLACK_BYTES
