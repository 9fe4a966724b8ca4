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
        self._prefix_queries = metrics.prefix_cache_queries_total.labels(model_id)
        self._prefix_hits = metrics.prefix_cache_hits_total.labels(model_id)
        self._proposed = metrics.spec_decode_draft_tokens_total.labels(model_id)
        self._accepted = metrics.spec_decode_accepted_tokens_total.labels(model_id)

        # What the counters have been told.
        self._num_queries = 0
        self._num_hits = 0
        self._num_proposed = 0
        self._num_accepted = 0

    def show(self, stats: EngineStats) -> None:
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._blocks_used.set(stats.blocks_used)
        self._blocks_total.set(stats.blocks_total)
        if stats.prefix_queries > self._num_queries:
            self._prefix_queries.inc(stats.prefix_queries - self._num_queries)
            self._prefix_hits.inc(stats.prefix_hits - self._num_hits)
            self._num_queries, self._num_hits = stats.prefix_queries, stats.prefix_hits
        if stats.proposed > self._num_proposed:
            self._proposed.inc(stats.proposed - self._num_proposed)
            self._accepted.inc(stats.accepted - self._num_accepted)
            self._num_proposed, self._num_accepted = stats.proposed, stats.accepted
