"""The API server as a process: its two ports, and its end."""

import http.client
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api_process import ApiProcess, api_process, status_of
from service_under_test import TIMEOUT_SECONDS


def test_sigterm_drains(tmp_path: Path) -> None:
    """From the signal on: not ready, no new work, open streams end whole, and the exit code is 0."""
    with api_process(tmp_path, delay_seconds=0.02) as running, streamed(running, max_tokens=60) as stream:
        first = stream.readline()

        running.process.send_signal(signal.SIGTERM)
        wait_for_status(f"{running.operations_url}/readyz", 503)
        with streamed(running, max_tokens=1) as late:
            refused = late.status
        on_main_port = status_of(f"{running.url}/readyz")
        alive = status_of(f"{running.operations_url}/livez")
        rest = stream.read()

        assert first.startswith(b"data: ")
        assert (refused, on_main_port, alive) == (503, 503, 200)
        assert rest.endswith(b"data: [DONE]\n\n")
        assert running.process.wait(TIMEOUT_SECONDS) == 0


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    """Who does not want to wait says so twice; what is open then ends with an error, and the exit code is 0."""
    # The stream lasts longer than the test waits.
    with api_process(tmp_path, delay_seconds=0.2) as running, streamed(running, max_tokens=190) as stream:
        stream.readline()

        running.process.send_signal(signal.SIGINT)
        wait_for_status(f"{running.operations_url}/readyz", 503)
        running.process.send_signal(signal.SIGINT)
        rest = stream.read()

        assert b'data: {"error":{' in rest
        assert running.process.wait(TIMEOUT_SECONDS) == 0


def test_operations_port(tmp_path: Path) -> None:
    """Probes and metrics are served beside the API."""
    with api_process(tmp_path) as running:
        for path in ("livez", "startupz", "readyz", "metrics"):
            assert status_of(f"{running.operations_url}/{path}") == 200


@contextmanager
def streamed(running: ApiProcess, *, max_tokens: int) -> Iterator[http.client.HTTPResponse]:
    """The answer to a streamed completion, its head read."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=TIMEOUT_SECONDS)
    body = json.dumps({"prompt": "ab", "max_tokens": max_tokens, "stream": True})
    try:
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        with connection.getresponse() as answer:
            yield answer
    finally:
        connection.close()


def wait_for_status(url: str, status: int) -> None:
    """Asks until the answer has a status."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while status_of(url) != status:
        assert time.monotonic() < deadline, f"{url} never gave {status}"
        time.sleep(0.01)
