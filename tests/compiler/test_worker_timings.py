"""What `flashgen run --timings` says, from the metrics of a worker."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from flashgen.worker_timings import WorkerTimings
from flashgen_runtime.timings import Timings


@contextmanager
def metrics_server(text: str) -> Iterator[int]:
    """The port of a worker's metrics."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


READY = """\
# TYPE flashgen_cold_start_seconds gauge
flashgen_cold_start_seconds{stage="imports"} 1.25
flashgen_cold_start_seconds{stage="other"} 5e-02
flashgen_steps_total{model="chat"} 0.0
"""


def test_a_start_is_told_as_a_table() -> None:
    """A line for each stage, and their sum."""
    said: list[str] = []
    with metrics_server(READY) as port:
        timings = WorkerTimings("chat", port)
        assert timings.are_known()
        assert not timings.are_complete()

    timings.tell(said.append)

    assert said == [
        "the worker chat, from the start of its process until ready:",
        "  imports          1.250 s",
        "  other            0.050 s",
        "  together         1.300 s",
    ]


def test_the_first_token_completes_it() -> None:
    """Its forward pass is the last stage."""
    said: list[str] = []
    with metrics_server(READY + 'flashgen_cold_start_seconds{stage="warm_up"} 0.5\n') as port:
        timings = WorkerTimings("chat", port)
        assert timings.are_complete()

    timings.tell(said.append)

    assert said[0].endswith("until the first token:")
    assert "  warm up          0.500 s" in said


def test_a_worker_that_is_not_there_is_waited_for() -> None:
    """It may be starting."""
    with metrics_server("") as port:
        assert not WorkerTimings("chat", port).are_known()
    assert not WorkerTimings("chat", port).are_known()


def test_the_metrics_are_those_of_a_worker() -> None:
    """As the runtime's library writes them."""
    from prometheus_client import generate_latest

    start = Timings(started=0.0, clock=lambda: 2.0)
    start.add("weights", 1.5)
    start.ready()

    with metrics_server(generate_latest().decode()) as port:
        timings = WorkerTimings("chat", port)
        assert timings.are_known()
