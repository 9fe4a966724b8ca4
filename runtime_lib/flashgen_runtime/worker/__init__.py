"""The worker process: a loop that feeds the engine and carries its outputs to the API servers.

Importing this package does not import torch; loading a real model does.
"""

from flashgen_runtime.worker.main import run_worker
from flashgen_runtime.worker.model_manager import ModelManager
from flashgen_runtime.worker.worker import Worker

__all__ = ["ModelManager", "Worker", "run_worker"]
