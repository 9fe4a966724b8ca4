"""Serves a sample with `flashgen run`, streams one answer from it, and keeps serving until Ctrl-C."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

PORT = 8000
ADDRESS = f"http://127.0.0.1:{PORT}"
PROMPT = "def read_lines(path):\n"
START_TIMEOUT_SECONDS = 180


def main(spec: str) -> int:
    """Runs until the service ends; gives its exit code."""
    service = subprocess.Popen([sys.executable, "-m", "flashgen", "run", spec, "--port", str(PORT)])
    # Ctrl-C reaches the service too; it drains, and this process waits for it.
    signal.signal(signal.SIGINT, lambda *_: service.send_signal(signal.SIGINT))
    signal.signal(signal.SIGTERM, lambda *_: service.terminate())
    if _wait_until_ready(service):
        _show_answer()
    return service.wait()


def _wait_until_ready(service: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while service.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{ADDRESS}/readyz", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False


def _show_answer() -> None:
    print(f"\nThe model continues this, streamed from {ADDRESS}/v1/completions:\n", flush=True)
    print(PROMPT, end="", flush=True)
    for text in _stream({"prompt": PROMPT, "max_tokens": 96, "stream": True}):
        print(text, end="", flush=True)
    body = json.dumps({"messages": [{"role": "user", "content": "import os\n\ndef "}]})
    print(f"\n\nserving on {ADDRESS} (documentation: {ADDRESS}/docs); Ctrl-C ends it. Ask it yourself:\n")
    print(f"  curl {ADDRESS}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n", flush=True)


def _stream(body: dict[str, object]) -> Iterator[str]:
    request = urllib.request.Request(
        f"{ADDRESS}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            data = line.decode().removeprefix("data: ").strip()
            if data and data != "[DONE]":
                yield json.loads(data)["choices"][0]["text"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
