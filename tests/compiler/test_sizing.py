import pytest

from flashgen import sizing
from flashgen.sizing import ResolvedResources

GIB = 2**30
CPU = ResolvedResources(cpus=2.0, memory_bytes=2 * GIB, gpus=0, gpu_memory_bytes=None, gpu_cuda_capability=None)
CARD = CPU._replace(gpus=1, gpu_memory_bytes=24 * 10**9)


@pytest.mark.parametrize(("resources", "tokens"), [(CPU, 512), (CARD, 2048)])
def test_a_card_takes_larger_batches(resources: ResolvedResources, tokens: int) -> None:
    """Block size and limits are the engine's own words."""
    sizes = sizing.engine_sizes(resources)

    assert (sizes.max_num_seqs, sizes.max_num_batched_tokens, sizes.block_size) == (64, tokens, 32)


def test_what_the_spec_says_is_what_holds() -> None:
    """Each size, with the key that says it as its reason."""
    sizes = sizing.engine_sizes(CPU, max_num_seqs=8, max_num_batched_tokens=96, block_size=64)

    assert (sizes.max_num_seqs, sizes.max_num_batched_tokens, sizes.block_size) == (8, 96, 64)
    assert sizes.max_num_seqs_reason == "as `engine.batching.max_requests` says"


@pytest.mark.parametrize(("seqs", "tokens", "expected"), [(None, 8, (8, 8)), (1000, None, (1000, 1000))])
def test_a_default_follows_the_size_that_the_spec_says(
    seqs: int | None, tokens: int | None, expected: tuple[int, int]
) -> None:
    """Every request that decodes needs one token of a forward pass."""
    sizes = sizing.engine_sizes(CPU, max_num_seqs=seqs, max_num_batched_tokens=tokens)

    assert (sizes.max_num_seqs, sizes.max_num_batched_tokens) == expected


@pytest.mark.parametrize(("cpus", "number"), [(0.5, 1), (1.0, 1), (2.0, 2), (2.5, 3)])
def test_threads_follow_the_processors(cpus: float, number: int) -> None:
    """At least one, and none idle."""
    assert sizing.threads(cpus)[0] == number


def test_a_download_gets_more_time_to_start_than_a_disk() -> None:
    """Twice the time that weights as large as the memory would take, and the time that Python and torch take."""
    from_disk, reason = sizing.startup_budget(CPU, from_hub=False)
    from_hub, _ = sizing.startup_budget(CPU, from_hub=True)

    assert from_disk == 60 + 2 * 11
    assert from_hub == 60 + 2 * 43
    assert reason == "60 s to start + twice the time to read weights that fill 2 GiB of memory at 200 MB/s"


def test_what_is_counted_sets_the_time_to_start() -> None:
    """The files of the models that are loaded at start, and no less than a download of several memories full."""
    counted, reason = sizing.startup_budget(CPU, from_hub=False, file_bytes=3 * 10**9)
    from_hub, hub_reason = sizing.startup_budget(CPU, from_hub=True, fillings=3)

    assert counted == 60 + 2 * 15
    assert reason == "60 s to start + twice the time to read 3 GB of weights at 200 MB/s"
    assert from_hub == 60 + 2 * 129
    assert "2 GiB of memory 3 times" in hub_reason


def test_a_request_waits_for_its_model_as_long_as_reading_may_take() -> None:
    """At least a minute: others may have to end before there is room."""
    assert sizing.load_timeout(CPU, file_bytes=10**6)[0] == 60
    assert sizing.load_timeout(CPU, file_bytes=20 * 10**9)[0] == 200
    assert sizing.load_timeout(CPU._replace(memory_bytes=64 * GIB))[0] == 688


def test_the_grace_period_outlasts_everything_before_it() -> None:
    """Kubernetes kills what is still there then, with its requests."""
    shutdown = sizing.shutdown()

    assert shutdown.termination_grace_seconds > shutdown.pre_stop_seconds + shutdown.drain_seconds + 10
