"""What the scheduler puts into a step: who comes first, who waits, who gives way."""

import pytest

from flashgen_runtime.engine.request import RequestState
from flashgen_runtime.engine.scheduler import Chunk
from flashgen_runtime.errors import RequestError
from tests.scheduler_trace import Trace, request_of, run_to_end

# Prompts without a common beginning: each is one number, again and again.
LONG = [5] * 40


def test_decodes_come_before_prompts() -> None:
    """A running request gets its token in every step, however long the prompts are that come in."""
    trace = Trace(num_blocks=64, budget=8)
    early = trace.add("early", [9], max_tokens=10)
    trace.step()
    trace.add("long", LONG, max_tokens=1)

    steps = [trace.step() for _ in range(4)]

    assert all(chunks[0] == Chunk(early, 1) for chunks in steps)
    assert [chunks[1].num_tokens for chunks in steps] == [7, 7, 7, 7]


def test_first_come_first_served() -> None:
    """A short prompt does not overtake a long one for which blocks are missing."""
    trace = Trace(num_blocks=4, budget=64)
    trace.add("first", [5] * 12, max_tokens=2)
    second = trace.add("second", [6] * 12, max_tokens=1)
    third = trace.add("third", [7], max_tokens=1)

    trace.step()

    assert second.state is RequestState.WAITING
    assert third.state is RequestState.WAITING


def test_start_leaves_room_for_the_growth_of_others() -> None:
    """A request that fits starts only if one more block is left for each that runs."""
    trace = Trace(num_blocks=4, budget=64)
    early = trace.add("early", [5] * 2, max_tokens=3)
    trace.step()
    late = trace.add("late", [6] * 12, max_tokens=1)

    trace.step()

    assert trace.pool.num_free == 3
    assert late.state is RequestState.WAITING
    run_to_end(trace)
    assert early.num_completion_tokens == 3


def test_waiting_prompts_share_a_step() -> None:
    """Several prompts fill one token budget; the one that does not fit goes on in the next step."""
    trace = Trace(num_blocks=64, budget=16)
    requests = [trace.add(str(number), [number] * 6, max_tokens=3) for number in (5, 6, 7)]

    first = trace.step()
    second = trace.step()

    assert first == [Chunk(requests[0], 6), Chunk(requests[1], 6), Chunk(requests[2], 4)]
    assert second == [Chunk(requests[0], 1), Chunk(requests[1], 1), Chunk(requests[2], 2)]


def test_short_prompt_does_not_wait_for_the_end_of_a_long_one() -> None:
    """Half of the budget goes to prompts that have less left; when there are none, the long one has all of it."""
    trace = Trace(num_blocks=64, budget=8)
    long = trace.add("long", LONG, max_tokens=1)
    other_long = trace.add("other long", [6] * 40, max_tokens=1)
    assert trace.step() == [Chunk(long, 8)]
    short = trace.add("short", [9, 9, 9], max_tokens=1)

    chunks = trace.step()

    assert chunks == [Chunk(long, 5), Chunk(short, 3)]
    assert short.is_finished
    assert other_long.num_computed_tokens == 0


def test_late_request_has_its_first_token_before_the_others_end() -> None:
    """A request that arrives while others decode does not wait for them."""
    trace = Trace(num_blocks=64, budget=32)
    early = [trace.add(str(number), [number] * 8, max_tokens=20) for number in (5, 6, 7, 8)]
    for _ in range(5):
        trace.step()
    late = trace.add("late", [9] * 8, max_tokens=3)

    trace.step()

    assert late.num_completion_tokens == 1
    assert not any(request.is_finished for request in early)


def test_the_newest_is_preempted_and_loses_nothing() -> None:
    """When the blocks run out the oldest goes on; the newest keeps its tokens and is computed again."""
    trace = Trace(num_blocks=4, budget=64)
    oldest = trace.add("oldest", [5] * 3, max_tokens=12)
    newest = trace.add("newest", [6] * 3, max_tokens=12)
    tokens_when_preempted: list[int] = []

    while not trace.is_done:
        trace.step()
        if newest.state is RequestState.WAITING:
            tokens_when_preempted.append(newest.num_completion_tokens)
        assert oldest.state is not RequestState.WAITING

    assert min(tokens_when_preempted) > 0
    assert newest.num_completion_tokens == 12
    trace.check_results(aborted=set())


def test_preempted_request_gets_its_own_blocks_back() -> None:
    """What nobody overwrote meanwhile is not computed again."""
    trace = Trace(num_blocks=8, budget=64)
    trace.add("oldest", [5] * 11, max_tokens=14)
    newest = trace.add("newest", [6] * 11, max_tokens=6)
    while newest.state is not RequestState.WAITING:
        trace.step()
        assert not newest.is_finished, "it was to be preempted"

    while newest.state is RequestState.WAITING:
        trace.step()

    assert trace.model.num_computed_tokens < 11 + 14 + 2 * 11
    run_to_end(trace)
    trace.check_results(aborted=set())


def test_what_can_never_fit_is_refused() -> None:
    """A request larger than the whole cache is refused when it comes, with the counts."""
    trace = Trace(num_blocks=2)

    with pytest.raises(RequestError, match=r"room for 9 tokens.*holds 8") as caught:
        trace.add("large", [5] * 4, max_tokens=5)

    assert caught.value.kind == "context_length"


def test_beams_that_can_never_fit_are_refused() -> None:
    """Beams share their prompt's full blocks and need room for the rest each, and a place each in a step."""
    trace = Trace(num_blocks=5, max_num_seqs=4)
    trace.add("as large as can be", [5] * 4, max_tokens=4, num_beams=4)

    with pytest.raises(RequestError, match=r"room for 9 tokens in each of 4 beams"):
        trace.add("too long", [5] * 4, max_tokens=5, num_beams=4)
    with pytest.raises(RequestError, match=r"`num_beams` is 5; at most 4") as caught:
        trace.add("too many", [5], max_tokens=1, num_beams=5)

    assert caught.value.param == "num_beams"
    run_to_end(trace)


def test_end_of_sequence_ends_a_request_of_any_length() -> None:
    """Every end-of-sequence id of the checkpoint stops."""
    trace = Trace()
    request = request_of("eos", [5, 5], max_tokens=9, eos_ids=frozenset({3, 7}))
    trace.scheduler.add(request)

    trace.scheduler.update(trace.scheduler.schedule().chunks, [7])

    assert request.finish_reason == "stop"
    assert trace.pool.num_used == 0


def test_static_batch_ends_before_the_next_starts() -> None:
    """With static batching a request waits for all that run, and prompts beyond the budget belong to the batch."""
    trace = Trace(num_blocks=64, budget=8, is_static=True)
    batch = [trace.add(str(number), [number] * 6, max_tokens=4) for number in (5, 6)]
    trace.step()
    late = trace.add("late", [9], max_tokens=1)

    while not all(request.is_finished for request in batch):
        trace.step()
        assert late.state is RequestState.WAITING
    trace.step()

    assert late.is_finished


def test_prompt_that_must_be_whole_exceeds_the_budget_alone() -> None:
    """Without chunks, prompts share a step as long as they fit; a longer one is computed beside nothing but decodes."""
    trace = Trace(num_blocks=64, budget=8, can_chunk=False, can_share=False)
    early = trace.add("early", [9], max_tokens=9)
    trace.step()
    small = [trace.add(str(number), [number] * 3, max_tokens=1) for number in (5, 6)]
    large = trace.add("large", [7] * 30, max_tokens=1)

    assert trace.step() == [Chunk(early, 1), Chunk(small[0], 3), Chunk(small[1], 3)]
    assert trace.step() == [Chunk(early, 1), Chunk(large, 30)]


def test_request_waits_while_another_computes_its_beginning() -> None:
    """Of equal prompts one is computed; the others wait for its blocks, and those behind them do not."""
    trace = Trace(num_blocks=64, budget=8)
    equal = [trace.add(f"equal {number}", [5] * 18, max_tokens=2) for number in range(3)]
    other = trace.add("other", [6] * 3, max_tokens=1)

    trace.step()

    assert other.is_finished
    assert [request.state for request in equal[1:]] == [RequestState.WAITING] * 2
    run_to_end(trace)
    assert [request.num_cached_tokens for request in equal] == [0, 16, 16]
    trace.check_results(aborted=set())


def test_waiting_for_a_beginning_ends_with_the_request_that_computes_it() -> None:
    """When the first of two equal prompts is aborted half-way, the second is computed from where the first came to."""
    trace = Trace(num_blocks=64, budget=8)
    first, second = (trace.add(name, [5] * 18, max_tokens=2) for name in ("first", "second"))
    trace.step()

    trace.scheduler.finish(first, None)
    trace.step()

    assert second.num_cached_tokens == 8
    run_to_end(trace)
    trace.check_results(aborted={"first"})


def test_beams_are_preempted_as_one_and_go_on_where_they_were() -> None:
    """The beams of a preempted search give all blocks back; computed again they find what they would have found."""
    trace = Trace(num_blocks=9, budget=64)
    oldest = trace.add("oldest", [5] * 3, max_tokens=24)
    search = trace.add("beams", [6] * 3, max_tokens=8, num_beams=3)
    was_preempted = False

    while not trace.is_done:
        trace.step()
        was_preempted |= search.state is RequestState.WAITING and not oldest.is_finished

    assert was_preempted
    trace.check_results(aborted=set())
