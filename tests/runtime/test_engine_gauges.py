"""An engine's stats as metrics."""

from prometheus_client import REGISTRY

from flashgen_runtime.engine.base import EngineStats
from flashgen_runtime.models.engine_gauges import EngineGauges

STATS = EngineStats(running=2, waiting=1, blocks_used=3, blocks_total=9, steps=5, preemptions=0)


def value(name: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"model": "gauged"})


def test_gauges_show_what_the_engine_holds() -> None:
    """Now, whatever they said before."""
    gauges = EngineGauges("gauged")

    gauges.show(STATS)
    gauges.show(STATS._replace(running=1, waiting=0))

    assert (value("flashgen_requests_running"), value("flashgen_requests_waiting")) == (1, 0)
    assert (value("flashgen_kv_blocks_used"), value("flashgen_kv_blocks_total")) == (3, 9)


def test_prefix_cache_counters_follow_the_engines_own() -> None:
    """Looked-up and found tokens only ever grow, however often they are shown."""
    gauges = EngineGauges("gauged")

    gauges.show(STATS._replace(prefix_queries=10, prefix_hits=4))
    gauges.show(STATS._replace(prefix_queries=10, prefix_hits=4))
    gauges.show(STATS._replace(prefix_queries=25, prefix_hits=20))

    assert value("flashgen_prefix_cache_queries_total") == 25
    assert value("flashgen_prefix_cache_hits_total") == 20


def test_counters_of_guesses_follow_the_engines_own() -> None:
    """Guessed and right tokens only ever grow, however often they are shown."""
    gauges = EngineGauges("gauged")

    gauges.show(STATS._replace(proposed=8, accepted=5))
    gauges.show(STATS._replace(proposed=8, accepted=5))
    gauges.show(STATS._replace(proposed=12, accepted=6))

    assert value("flashgen_spec_decode_draft_tokens_total") == 12
    assert value("flashgen_spec_decode_accepted_tokens_total") == 6
