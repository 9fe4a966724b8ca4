"""The scheduler on random traces, with a model that needs no computing: every token id is 7."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from flashgen_runtime.engine.block_pool import BlockPool
from flashgen_runtime.engine.request import Request, RequestState
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.scheduler import Chunk, Scheduler
from flashgen_runtime.errors import RequestError

TOKEN = 7
BLOCK_SIZE = 4


def request_of(name: str, *, prompt: int, max_tokens: int) -> Request:
    return Request(
        request_id=name,
        params=SamplingParams(max_tokens=max_tokens, temperature=0),
        token_ids=[TOKEN] * prompt,
        num_prompt_tokens=prompt,
        seed=0,
        eos_ids=frozenset(),
    )


@dataclass
class Trace:
    """A scheduler, all requests it was given, and a check of every invariant after each step."""

    num_blocks: int = 8
    max_num_seqs: int = 8
    budget: int = 16
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.num_blocks)
        self.scheduler = Scheduler(
            self.pool, block_size=BLOCK_SIZE, max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.budget
        )

    def add(self, name: str, *, prompt: int, max_tokens: int) -> Request:
        request = request_of(name, prompt=prompt, max_tokens=max_tokens)
        self.scheduler.add(request)
        self.requests.append(request)
        return request

    @property
    def is_done(self) -> bool:
        return all(request.is_finished for request in self.requests)

    def step(self) -> list[Chunk]:
        chunks = self.scheduler.schedule()
        self._check_chunks(chunks)
        self.scheduler.update(chunks, [TOKEN for chunk in chunks if chunk.reaches_end])
        self.check_blocks()
        return chunks

    def _check_chunks(self, chunks: list[Chunk]) -> None:
        assert chunks, "requests wait, and the step computes nothing"
        assert sum(chunk.num_tokens for chunk in chunks) <= self.budget
        assert len({id(chunk.request) for chunk in chunks}) == len(chunks) <= self.max_num_seqs
        assert all(chunk.request.state is RequestState.RUNNING for chunk in chunks)
        for request, num_tokens in chunks:
            assert len(request.block_table) * BLOCK_SIZE >= request.num_computed_tokens + num_tokens

    def check_blocks(self) -> None:
        held = [block for request in self.requests for block in request.block_table]
        assert len(held) == len(set(held)) == self.pool.num_used
        assert self.pool.num_used + self.pool.num_free == self.num_blocks
        for request in self.requests:
            assert (len(request.block_table) > 0) == (request.state is RequestState.RUNNING)


def run(trace: Trace) -> Iterator[list[Chunk]]:
    """Steps until every request is finished; a trace that does not end fails."""
    for _ in range(2000):
        if trace.is_done:
            return
        yield trace.step()
    raise AssertionError("the trace does not end")


@pytest.mark.parametrize("seed", range(40))
def test_every_request_ends_whatever_comes_when(seed: int) -> None:
    """Random arrivals and aborts on a small pool: the invariants hold after each step, and all get their tokens."""
    chance = random.Random(seed)
    trace = Trace(num_blocks=chance.randint(5, 14), max_num_seqs=chance.randint(1, 6), budget=chance.randint(1, 24))
    aborted: set[str] = set()
    for number in range(chance.randint(5, 25)):
        max_tokens = chance.randint(1, 10)
        trace.add(str(number), prompt=chance.randint(1, 20 - max_tokens), max_tokens=max_tokens)
        for _ in range(chance.randint(0, 3)):
            if not trace.is_done:
                trace.step()
        if chance.random() < 0.2:
            victim = chance.choice(trace.requests)
            if not victim.is_finished:
                trace.scheduler.finish(victim, None)
                aborted.add(victim.request_id)
                assert len(victim.block_table) == 0
                trace.check_blocks()

    for _ in run(trace):
        pass

    assert trace.pool.num_used == 0
    for request in trace.requests:
        if request.request_id not in aborted:
            assert request.num_completion_tokens == request.params.max_tokens
            assert request.finish_reason == "length"


def test_decodes_come_before_prompts() -> None:
    """A running request gets its token in every step, however long the prompts are that come in."""
    trace = Trace(num_blocks=64, budget=8)
    early = trace.add("early", prompt=1, max_tokens=10)
    trace.step()
    trace.add("long", prompt=40, max_tokens=1)

    steps = [trace.step() for _ in range(4)]

    assert all(chunks[0] == Chunk(early, 1) for chunks in steps)
    assert [chunks[1].num_tokens for chunks in steps] == [7, 7, 7, 7]


def test_first_come_first_served() -> None:
    """A short prompt does not overtake a long one for which blocks are missing."""
    trace = Trace(num_blocks=4, budget=64)
    trace.add("first", prompt=12, max_tokens=2)
    second = trace.add("second", prompt=12, max_tokens=1)
    third = trace.add("third", prompt=1, max_tokens=1)

    trace.step()

    assert second.state is RequestState.WAITING
    assert third.state is RequestState.WAITING


def test_the_newest_is_preempted_and_loses_nothing() -> None:
    """When the blocks run out the oldest goes on; the newest keeps its tokens and is computed again."""
    trace = Trace(num_blocks=4, budget=64)
    oldest = trace.add("oldest", prompt=3, max_tokens=12)
    newest = trace.add("newest", prompt=3, max_tokens=12)
    preempted_tokens: list[int] = []

    for _ in run(trace):
        if newest.state is RequestState.WAITING:
            preempted_tokens.append(newest.num_completion_tokens)
        assert oldest.state is not RequestState.WAITING

    assert preempted_tokens
    assert min(preempted_tokens) > 0
    assert newest.num_completion_tokens == 12


def test_what_can_never_fit_is_refused() -> None:
    """A request larger than the whole cache is refused when it comes, with the counts."""
    trace = Trace(num_blocks=2)

    with pytest.raises(RequestError, match=r"room for 9 tokens.*holds 8") as caught:
        trace.add("large", prompt=4, max_tokens=5)

    assert caught.value.kind == "context_length"


def test_end_of_sequence_ends_a_request_of_any_length() -> None:
    """Every end-of-sequence id of the checkpoint stops."""
    pool = BlockPool(4)
    scheduler = Scheduler(pool, block_size=4, max_num_seqs=4, max_num_batched_tokens=16)
    request = request_of("eos", prompt=2, max_tokens=9)
    request.eos_ids = frozenset({3, TOKEN})
    scheduler.add(request)

    scheduler.update(scheduler.schedule(), [TOKEN])

    assert request.finish_reason == "stop"
    assert pool.num_used == 0


def test_late_request_has_its_first_token_before_the_others_end() -> None:
    """A request that arrives while others decode does not wait for them."""
    trace = Trace(num_blocks=64, budget=32)
    early = [trace.add(str(number), prompt=8, max_tokens=20) for number in range(4)]
    for _ in range(5):
        trace.step()
    late = trace.add("late", prompt=8, max_tokens=3)

    trace.step()

    assert late.num_completion_tokens == 1
    assert not any(request.is_finished for request in early)
