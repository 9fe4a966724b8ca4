"""Memory that a worker's models share: the budget, what each KV cache gets of it, the volume behind it."""

import pytest

from flashgen.checkpoint_sizes import CheckpointSizes
from flashgen.memory_sizes import MemoryBudget, ModelDemand, memory_budget, volume_size, with_kv_cache
from flashgen.sizing import EngineSizes, ResolvedResources, engine_sizes

MIB, GIB, GB = 2**20, 2**30, 10**9
CPU = ResolvedResources(cpus=2.0, memory_bytes=4 * GIB, gpus=0, gpu_memory_bytes=None, gpu_cuda_capability=None)
CARD = CPU._replace(gpus=1, gpu_memory_bytes=24 * GB)
UNKNOWN = ModelDemand(keeps_kv_cache=True, sizes=None, has_max_context=False, is_preloaded=True)


def sizes(weight_bytes: int, *, sequence_kv_bytes: int = 64 * MIB) -> CheckpointSizes:
    """A checkpoint without buffers, whose blocks take a MiB each."""
    return CheckpointSizes(
        file_bytes=weight_bytes,
        weight_bytes=weight_bytes,
        sequence_kv_bytes=sequence_kv_bytes,
        block_kv_bytes=MIB,
        token_buffer_bytes=0,
        logits_bytes=0,
        least_batched_tokens=0,
    )


def demand(weight_bytes: int, **changed: bool) -> ModelDemand:
    return UNKNOWN._replace(sizes=sizes(weight_bytes), **changed)


def kv_cache(
    *models: ModelDemand, resources: ResolvedResources = CPU, max_loaded: int = 1, declared: int | None = None
) -> EngineSizes:
    budget = memory_budget(resources)
    return with_kv_cache(engine_sizes(resources), resources, budget, models, max_loaded=max_loaded, declared=declared)


def test_the_process_has_its_part_of_the_memory() -> None:
    """A GiB, or half of a small worker's memory."""
    assert memory_budget(CPU) == MemoryBudget(3 * GIB, "the 4 GiB of memory without 1 GiB for the process itself")
    assert memory_budget(CPU._replace(memory_bytes=GIB)).num_bytes == GIB // 2
    assert memory_budget(CARD).num_bytes == 24 * GB - GIB


def test_the_pool_is_a_part_of_the_workers_memory() -> None:
    """On a card the weights are elsewhere, and the pool takes none of their memory."""
    budget = memory_budget(CPU, pool_bytes=GIB)

    assert budget.num_bytes == 2 * GIB
    assert budget.reason.endswith("and 1 GiB for `weights.pool`")
    assert memory_budget(CARD, pool_bytes=GIB) == memory_budget(CARD)


def test_the_kv_cache_is_a_quarter_of_the_memory() -> None:
    """Weights that nobody counted may leave less, and the reason says so."""
    found = kv_cache(UNKNOWN)

    assert found.kv_cache_bytes == GIB
    assert found.kv_cache_reason == (
        "a quarter of the 4 GiB of memory; weights that are not here to be counted may leave less"
    )
    assert kv_cache(demand(GIB)).kv_cache_reason == "a quarter of the 4 GiB of memory"


def test_on_a_card_its_own_memory_counts() -> None:
    """The declared minimum, else the smallest card of data centres."""
    unknown = kv_cache(UNKNOWN, resources=CARD._replace(gpu_memory_bytes=None))

    assert kv_cache(UNKNOWN, resources=CARD).kv_cache_bytes == 6 * GB
    assert unknown.kv_cache_bytes == 4 * GB
    assert "16 GB assumed of GPU memory" in unknown.kv_cache_reason


def test_models_that_are_loaded_together_share_the_quarter() -> None:
    """Each loaded model has a KV cache of its own."""
    found = kv_cache(UNKNOWN, UNKNOWN, UNKNOWN, max_loaded=2)

    assert found.kv_cache_bytes == GIB // 2
    assert "shared by the 2 models that can be loaded at once" in found.kv_cache_reason


def test_an_embedding_model_keeps_no_kv_cache() -> None:
    """Memory that nothing would use is not reserved."""
    assert kv_cache(UNKNOWN._replace(keeps_kv_cache=False)).kv_cache_bytes == 0


def test_large_weights_leave_less() -> None:
    """Of one model, and of those that are loaded at start together."""
    alone = kv_cache(demand(2 * GIB + 512 * MIB))
    together = kv_cache(demand(GIB), demand(GIB + 512 * MIB), max_loaded=2)
    in_turn = kv_cache(demand(GIB), demand(GIB + 512 * MIB, is_preloaded=False), max_loaded=1)

    assert alone.kv_cache_bytes == 512 * MIB
    assert alone.kv_cache_reason == "what weights and buffers leave of the 3 GiB in memory_bytes"
    assert together.kv_cache_bytes == 256 * MIB
    assert in_turn.kv_cache_bytes == GIB


def test_draft_models_take_a_part_of_the_same_memory() -> None:
    """Their weights, and a KV cache of as many blocks: with blocks of equal size the model's own cache is halved."""
    drafted = demand(2 * GIB)._replace(drafts=(sizes(GIB // 2),))

    found = kv_cache(drafted)

    assert found.kv_cache_bytes == GIB // 4
    assert drafted.weight_bytes == 2 * GIB + GIB // 2
    assert drafted.loaded_bytes(found) == 2 * GIB + GIB // 2 + 2 * found.kv_cache_bytes
    assert kv_cache(drafted, demand(GIB // 4), max_loaded=2).kv_cache_bytes == GIB // 16


def test_a_draft_model_that_is_not_here_may_leave_less() -> None:
    """Then the reason says so, as for a model itself."""
    found = kv_cache(demand(GIB)._replace(drafts=(None,)))

    assert found.kv_cache_reason.endswith("weights that are not here to be counted may leave less")


def test_one_sequence_of_the_declared_context_fits() -> None:
    """A quarter is not enough for it; without a declared context the cache sets the limit."""
    long = UNKNOWN._replace(sizes=sizes(GIB, sequence_kv_bytes=GIB + MIB))

    assert kv_cache(long._replace(has_max_context=True)).kv_cache_bytes == GIB + MIB
    assert kv_cache(long).kv_cache_bytes == GIB


def test_what_the_spec_says_is_what_holds() -> None:
    """With its key as the reason."""
    found = kv_cache(UNKNOWN, declared=GIB)

    assert (found.kv_cache_bytes, found.kv_cache_reason) == (GIB, "as `engine.kv_cache.memory` says")


@pytest.mark.parametrize(("memory_bytes", "expected"), [(10 * MIB + 5, 10), (MIB - 1, 0), (GIB, 128)])
def test_a_cache_takes_whole_blocks_and_no_more_than_requests_fill(memory_bytes: int, expected: int) -> None:
    """Two requests of 64 blocks each."""
    assert sizes(GIB).kv_cache_bytes(memory_bytes, max_num_seqs=2) == expected * MIB


def test_a_volume_holds_all_weights_twice() -> None:
    """A new revision fits beside the old one, and prepared weights beside checkpoints."""
    counted = volume_size(CPU, [sizes(GIB), sizes(2 * GIB)], num_served=2, max_loaded=1)
    card = volume_size(CARD._replace(gpus=2), [None], num_served=1, max_loaded=1)

    assert counted.num_bytes == 12 * GIB
    assert counted.reason == "In whole GiB, twice 3.0 GiB of checkpoints and 3.0 GiB of prepared weights"
    assert card.num_bytes == 96 * GB
    assert volume_size(CPU, [None], num_served=1, max_loaded=1).num_bytes == 8 * GIB
    assert volume_size(CPU, [None, sizes(GIB), None], num_served=3, max_loaded=2).num_bytes == 16 * GIB
    assert volume_size(CPU, [None, None], num_served=1, max_loaded=1).num_bytes == 8 * GIB
