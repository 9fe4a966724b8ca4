"""What the start of a worker on this machine took, as its metrics tell."""

import http.client
import re
from collections.abc import Callable
from contextlib import closing

from flashgen.ports import HOST

_STAGE = re.compile(r'^flashgen_cold_start_seconds\{stage="(\w+)"\} ([0-9.e+-]+)$', re.MULTILINE)
_TIMEOUT_SECONDS = 1.0

# The first forward pass, which is there when the first token is out.
_LAST_STAGE = "warm_up"


class WorkerTimings:
    """The stages of one worker's start.

    Args:
        name: the server's.
        port: of its probes and metrics.
    """

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port

        # By stage, in the order in which they came.
        self._seconds: dict[str, float] = {}

    def are_known(self) -> bool:
        """Whether the worker has got ready."""
        self._seconds = _parsed(self._metrics())
        return bool(self._seconds)

    def are_complete(self) -> bool:
        """Whether its first token is out."""
        return self.are_known() and _LAST_STAGE in self._seconds

    def tell(self, say: Callable[[str], None]) -> None:
        """A table: one line for each stage, and their sum."""
        event = "the first token" if _LAST_STAGE in self._seconds else "ready"
        say(f"the worker {self._name}, from the start of its process until {event}:")
        for stage, seconds in [*self._seconds.items(), ("together", sum(self._seconds.values()))]:
            say(f"  {stage.replace('_', ' '):<14}{seconds:8.3f} s")

    def _metrics(self) -> str:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=_TIMEOUT_SECONDS)
        with closing(connection):
            try:
                connection.request("GET", "/metrics")
                return connection.getresponse().read().decode()
            except (OSError, http.client.HTTPException):
                return ""


def _parsed(metrics: str) -> dict[str, float]:
    return {stage: float(seconds) for stage, seconds in _STAGE.findall(metrics)}
