"""What a fork server has done when it forks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flashgen_runtime.loader.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
CODER = ROOT / "samples" / "models" / "stdlib-coder"
PROGRAM = """
import json, os, sys
from pathlib import Path
from msgspec.structs import replace
from flashgen_runtime.worker.ahead import work_ahead
from tests.runtime_workers import model_config, server_config

models = Path(sys.argv[1])
work_ahead(server_config(*map(model_config, sys.argv[2:])), models)
from flashgen_runtime.loader import tokenizer_cache
modules = {name: name in sys.modules for name in ("torch", "transformers", "flashgen_runtime.engine.native_decoder")}
variable = os.environ.get("OPENBLAS_NUM_THREADS")
threads = len(os.listdir("/proc/self/task"))
print(json.dumps([modules, variable, threads, len(tokenizer_cache._ahead)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks only on Linux")
def test_native_models_are_prepared_without_transformers(tmp_path: Path) -> None:
    """Torch, our decoder and the kept tokenizer are there; a checkpoint that is not is the worker's to report."""
    load_tokenizer(CODER, vocab_size=1, store=tmp_path)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(CODER.parent), CODER.name, "missing"],
        env={"PYTHONPATH": str(ROOT), "FLASHGEN_STORE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    modules, variable, threads, num_tokenizers = json.loads(done.stdout)
    assert modules == {"torch": True, "transformers": False, "flashgen_runtime.engine.native_decoder": True}
    assert (variable, threads, num_tokenizers) == (None, 1, 1)
