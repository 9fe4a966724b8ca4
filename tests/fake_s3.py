"""An S3 on loopback: moto's server in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.error import URLError
from urllib.request import Request, urlopen

START_SECONDS = 60

# The server has nobody to ask: any credentials do.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def fake_s3() -> Iterator[str]:
    """Its address, until the block ends."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **CREDENTIALS}
    )
    try:
        _wait_for(url, server)
        yield url
    finally:
        server.kill()
        server.wait()


def put(url: str, path: str, content: bytes = b"") -> None:
    """Writes an object, or makes a bucket."""
    headers = {"Authorization": _AUTHORIZATION, "Content-Type": "application/octet-stream"}
    with urlopen(Request(f"{url}/{path}", data=content, method="PUT", headers=headers)):
        pass


# Names the service that is meant; nobody checks the signature.
_AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=id/20300101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            with urlopen(f"{url}/moto-api/", timeout=5):
                return
        except (URLError, ConnectionError):
            time.sleep(0.05)
    raise AssertionError("moto's server did not start")
