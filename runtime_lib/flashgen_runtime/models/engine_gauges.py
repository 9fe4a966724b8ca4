"""Shows an engine's stats as metrics."""

from flashgen_runtime import metrics
from flashgen_runtime.engine.base import EngineStats


class EngineGauges:
    """The gauges of one model; finding them by label costs more than setting them, so it is done once."""

    def __init__(self, model_id: str) -> None:
        self._running = metrics.requests_running.labels(model_id)
        self._waiting = metrics.requests_waiting.labels(model_id)
        self._blocks_used = metrics.kv_blocks_used.labels(model_id)
        self._blocks_total = metrics.kv_blocks_total.labels(model_id)

    def show(self, stats: EngineStats) -> None:
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._blocks_used.set(stats.blocks_used)
        self._blocks_total.set(stats.blocks_total)
