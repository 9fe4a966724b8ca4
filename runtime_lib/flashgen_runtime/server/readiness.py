"""Whether requests can be served: the state of each server from what its workers say, and of the whole process."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from flashgen_runtime.operations import Probe
from flashgen_runtime.server.errors import NOT_READY_RETRY_SECONDS
from flashgen_runtime.server.pool import WorkerPool

ServerState = Literal["ready", "loading", "starting", "draining", "failed", "unreachable"]

# Of several workers that are not ready, the one that is nearest to it speaks for the server.
_NEAREST_FIRST: tuple[ServerState, ...] = ("loading", "starting", "draining", "failed")


class PoolState(NamedTuple):
    """What one server's workers are at."""

    state: ServerState
    ready_workers: int
    detail: str = ""

    @property
    def sentence(self) -> str:
        """The state, and why."""
        return f"{self.state} ({self.detail})" if self.detail else self.state

    @property
    def body(self) -> dict[str, object]:
        detail = {"detail": self.detail} if self.detail else {}
        return {"state": self.state, "ready_workers": self.ready_workers, **detail}


def state_of(pool: WorkerPool) -> PoolState:
    """Ready with one ready worker; a failure is remembered after the worker that reported it has exited."""
    num_ready = sum(member.is_ready for member in pool.members)
    if num_ready:
        return PoolState("ready", num_ready)
    statuses = [member.status for member in pool.members if member.status is not None]
    for state in _NEAREST_FIRST:
        for status in statuses:
            if status.state == state:
                return PoolState(state, 0, status.detail)
    for member in pool.members:
        if member.failure is not None:
            return PoolState("failed", 0, member.failure)
    return PoolState("unreachable", 0, "no worker answers")


def readiness(pools: Mapping[str, WorkerPool], *, is_draining: bool) -> Probe:
    """Ready when every server is, and the process does not drain."""
    states = {name: state_of(pool) for name, pool in pools.items()}
    is_ready = not is_draining and all(state.state == "ready" for state in states.values())
    body: dict[str, object] = {
        "status": "ready" if is_ready else "draining" if is_draining else "not ready",
        "servers": {name: state.body for name, state in states.items()},
    }
    return Probe(ok=is_ready, body=body, retry_after_seconds=None if is_ready else NOT_READY_RETRY_SECONDS)
