"""The operations port: probes and metrics over HTTP, and what a careless or hostile client gets."""

import asyncio
import json

import pytest

from flashgen_runtime import operations
from flashgen_runtime.operations import OperationsServer, Probe
from tests.runtime_workers import TIMEOUT_SECONDS


class FakeProbes:
    """Alive and started, but not ready."""

    def livez(self):
        return Probe(ok=True, body={"state": "alive"})

    def startupz(self):
        return Probe(ok=True, body={})

    def readyz(self):
        return Probe(ok=False, body={"state": "loading"}, retry_after_seconds=7)


class BrokenProbes(FakeProbes):
    def livez(self):
        raise ZeroDivisionError


def exchange(sent: bytes, *, probes=None, ends_input: bool = False) -> bytes:
    """All bytes that come back until the server closes the connection."""

    async def main() -> bytes:
        server = OperationsServer(probes or FakeProbes(), host="127.0.0.1", port=0)
        await server.start()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(sent)
            if ends_input:
                writer.write_eof()
            received = await reader.read()
            writer.close()
            await server.close()
        return received

    return asyncio.run(main())


def get(path: str, *, method: str = "GET", probes=None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request."""
    request = f"{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
    head, _, body = exchange(request.encode(), probes=probes).partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    return int(status_line.split()[1]), dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/livez", 200, {"state": "alive"}),
        ("/healthz", 200, {"state": "alive"}),
        ("/livez?verbose=1", 200, {"state": "alive"}),
        ("/startupz", 200, {}),
        ("/readyz", 503, {"state": "loading"}),
    ],
)
def test_probes_answer_in_json(path, status, body):
    """200 or 503, and why."""
    found = get(path)

    assert (found[0], json.loads(found[2])) == (status, body)
    assert found[1]["Content-Type"] == "application/json"


def test_a_probe_may_say_when_to_come_back():
    """A process that is not ready sends Retry-After; one that is alive does not."""
    assert get("/readyz")[1]["Retry-After"] == "7"
    assert "Retry-After" not in get("/livez")[1]


def test_metrics_are_served_in_prometheus_text():
    """`/metrics` has what the process counts, of both kinds."""
    status, headers, body = get("/metrics")

    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert b"# HELP flashgen_requests_total" in body
    assert b"# HELP flashgen_step_seconds" in body


def test_head_has_no_body():
    """HEAD gives the headers of GET."""
    status, headers, body = get("/livez", method="HEAD")

    assert (status, headers["Content-Length"], body) == (200, "18", b"")


def test_a_connection_is_kept():
    """Requests of one connection are answered in order, until it is to be closed."""
    answers = exchange(
        b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /startupz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )

    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.index(b"keep-alive") < answers.index(b"Connection: close")


@pytest.mark.parametrize(
    ("sent", "status_line"),
    [
        (b"GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\n", b"HTTP/1.1 404 Not Found"),
        (b"POST /livez HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"HTTP/1.1 405 Method Not Allowed"),
        (b"rubbish\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /livez SPDY/9\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"\xff\xfe\x00\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (
            b"GET /livez HTTP/1.1\r\n" + b"X-Long: x\r\n" * 10_000 + b"\r\n",
            b"HTTP/1.1 431 Request Header Fields Too Large",
        ),
        (b"GET /livez HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET /livez HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET ", b"HTTP/1.1 200 OK"),
    ],
)
def test_other_requests_get_an_answer_and_a_closed_connection(sent, status_line):
    """Whatever arrives is answered in one line; what is not understood is not read any further."""
    assert exchange(sent).split(b"\r\n")[0] == status_line


def test_a_client_that_hangs_up_is_forgotten():
    """Half a request and an end of input is no error of ours."""
    assert exchange(b"GET /livez HT", ends_input=True) == b""


def test_a_client_that_dawdles_is_dropped(monkeypatch):
    """A connection without a request does not stay open."""
    monkeypatch.setattr(operations, "READ_TIMEOUT_SECONDS", 0.05)

    assert exchange(b"GET /livez HTTP/1.1\r\n") == b""


def test_connections_are_bounded(monkeypatch):
    """Beyond the limit a connection is closed without an answer."""
    monkeypatch.setattr(operations, "MAX_CONNECTIONS", 0)

    assert exchange(b"") == b""


def test_a_probe_with_a_bug_is_an_error_of_the_server():
    """The exception is logged; the client gets 500, and the next request is served."""
    status, _, _ = get("/livez", probes=BrokenProbes())

    assert status == 500


def test_closing_ends_open_connections():
    """`close` waits for nobody, and frees the port."""

    async def main():
        server = OperationsServer(FakeProbes(), host="127.0.0.1", port=0)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /livez HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"alive")

        await server.close()

        await reader.read()
        writer.close()
        again = OperationsServer(FakeProbes(), host="127.0.0.1", port=server.port)
        await again.start()
        await again.close()

    asyncio.run(main())


def test_a_port_that_is_taken_is_an_error():
    """Two processes cannot have one operations port, and the second one says so."""

    async def main():
        first = OperationsServer(FakeProbes(), host="127.0.0.1", port=0)
        await first.start()
        try:
            await OperationsServer(FakeProbes(), host="127.0.0.1", port=first.port).start()
        finally:
            await first.close()

    with pytest.raises(OSError, match="in use"):
        asyncio.run(main())
