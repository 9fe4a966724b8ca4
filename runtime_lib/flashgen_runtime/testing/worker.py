"""A worker process with fakes in the place of models: `python -m flashgen_runtime.testing.worker --server NAME`.

For benchmarks and for tests across processes. Everything but the models is the real worker, its environment too.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from flashgen_runtime.testing.models import FakeLibrary
from flashgen_runtime.worker.main import run_worker_with


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m flashgen_runtime.testing.worker", description=__doc__)
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration file, before FLASHGEN_CONFIG")
    parser.add_argument("--server", required=True, metavar="NAME", help="the server's name in the configuration file")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="how long a step takes")
    options = parser.parse_args(arguments)
    if options.config is not None:
        os.environ["FLASHGEN_CONFIG"] = str(options.config)
    run_worker_with(options.server, lambda server, _: FakeLibrary(server, delay_seconds=options.delay))


if __name__ == "__main__":
    main()
