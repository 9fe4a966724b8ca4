"""The worker's probes: alive while it makes progress, started once it has loaded, ready while it takes requests."""

from flashgen_runtime.operations import Probe
from flashgen_runtime.worker.worker import Worker

# A step is bounded by `max_num_batched_tokens`, but a big model on a slow CPU may need a minute for a full one.
STUCK_AFTER_SECONDS = 180.0

# How long callers should wait for a worker that loads or restarts.
RETRY_AFTER_SECONDS = 5


class WorkerProbes:
    """`operations.Probes` of one worker."""

    def __init__(self, worker: Worker, *, stuck_after_seconds: float = STUCK_AFTER_SECONDS) -> None:
        self._worker = worker
        self._stuck_after_seconds = stuck_after_seconds

    def livez(self) -> Probe:
        """Fails when there is work and no step has ended for long, or when the engine's thread is gone."""
        loop = self._worker.engine_loop
        seconds = loop.seconds_without_progress
        is_stuck = seconds > self._stuck_after_seconds
        has_thread = loop.is_alive or self._worker.state == "starting"
        body: dict[str, object] = {"state": self._worker.state, "seconds_without_progress": round(seconds, 1)}
        return Probe(has_thread and not is_stuck, body)

    def startupz(self) -> Probe:
        state = self._worker.state
        return Probe(state in ("ready", "draining"), {"state": state})

    def readyz(self) -> Probe:
        state = self._worker.state
        if state == "ready":
            return Probe(ok=True, body={"state": state})
        return Probe(ok=False, body={"state": state}, retry_after_seconds=RETRY_AFTER_SECONDS)
