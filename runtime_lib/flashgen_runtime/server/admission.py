"""How many requests may be open at once: what does not fit is refused at once, never queued without bound."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from flashgen_runtime import metrics
from flashgen_runtime.errors import RequestError

# Requests per place in a worker's batch, those that wait included. A request that waits longer than seven others take
# is better told so: its caller, or a load balancer, can go elsewhere.
REQUESTS_PER_SEQUENCE = 8

# A small batch is no reason to refuse a small burst.
MIN_LIMIT = 64


class Admission:
    """Counts open requests by model, refuses above a limit, and refuses everything while the process drains."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False

    @contextmanager
    def admit(self, model: str, *, api: str, limit: int, places: int = 1) -> Iterator[None]:
        """Keeps places for as long as the context is open; raises `RequestError` if there is none.

        A request with several prompts is admitted as a whole while one place is free.
        """
        if self.is_draining:
            raise RequestError("the server is shutting down", kind="unavailable")
        if self._open[model] >= limit:
            message = f"the model `{model}` has {self._open[model]} open requests, as many as it takes"
            raise RequestError(message, kind="overloaded")
        in_flight = metrics.requests_in_flight.labels(api)
        self._open[model] += places
        in_flight.inc(places)
        self._idle.clear()
        try:
            yield
        finally:
            in_flight.dec(places)
            self._open[model] -= places
            if not any(self._open.values()):
                self._idle.set()

    async def drain(self) -> None:
        """Admits nothing from now on; returns when nothing is open."""
        self.is_draining = True
        await self._idle.wait()


def limit_of(max_num_seqs: int, num_workers: int) -> int:
    """Requests that one server's workers take together."""
    return max(MIN_LIMIT, REQUESTS_PER_SEQUENCE * max_num_seqs * max(1, num_workers))
