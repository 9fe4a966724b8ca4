"""How much of a process lies in memory, and the most of it over a while. Only the standard library."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAMPLE_SECONDS = 0.002


class Peak:
    """The most bytes that were seen."""

    def __init__(self) -> None:
        self.num_bytes = 0


def resident_bytes() -> int:
    """Of this process: private pages and mapped ones, whoever shares them."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not say how much is resident")


@contextmanager
def watched_memory(sample_seconds: float = SAMPLE_SECONDS) -> Iterator[Peak]:
    """Looks every few milliseconds, in a thread of its own, while the context lasts."""
    peak = Peak()
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(sample_seconds):
            peak.num_bytes = max(peak.num_bytes, resident_bytes())

    thread = threading.Thread(target=watch, name="memory")
    thread.start()
    try:
        yield peak
    finally:
        is_done.set()
        thread.join()
