"""A process that serves the application under test with fake workers: `serve_fakes.py FOLDER PORT DELAY_SECONDS`."""

import sys
from pathlib import Path

from service_under_test import fake_application

from flashgen_runtime.server import serve

OPERATIONS_OFFSET = 1
# Longer than any test waits.
DRAIN_SECONDS = 60.0


def main() -> None:
    folder, port, delay_seconds = sys.argv[1:]
    app = fake_application(Path(folder), delay_seconds=float(delay_seconds))
    operations_port = int(port) + OPERATIONS_OFFSET
    serve(app, host="127.0.0.1", port=int(port), operations_port=operations_port, drain_seconds=DRAIN_SECONDS)


if __name__ == "__main__":
    main()
