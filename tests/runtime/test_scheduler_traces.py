"""The scheduler on random traces: invariants after every step, every request ends, and right tokens.

The model follows a law that depends on each token's place in the KV cache, see `tests.law_model`.
"""

import random

import pytest

from tests.law_model import VOCAB_SIZE
from tests.scheduler_trace import BLOCK_SIZE, Trace, run_to_end


def random_trace(chance: random.Random, **kinds: bool) -> Trace:
    return Trace(
        num_blocks=chance.randint(7, 16),
        max_num_seqs=chance.randint(3, 8),
        budget=chance.randint(3, 24),
        eos_ids=frozenset({3}),
        **kinds,
    )


def random_prompt(chance: random.Random, *, longest: int) -> list[int]:
    """Often the beginning of one of two texts, so that requests share some of it."""
    text = [chance.choice((5, 6))] * BLOCK_SIZE * 5
    length = chance.randint(1, longest)
    shared = chance.choice((0, length - 1, length, length))
    return text[:shared] + [chance.randrange(VOCAB_SIZE) for _ in range(length - shared)]


KINDS = {
    "sharing": {},
    "static": {"is_static": True},
    "nothing shared": {"can_share": False},
    "whole prompts": {"can_share": False, "can_chunk": False},
}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("seed", range(30))
def test_every_request_ends_whatever_comes_when(seed: int, kinds: dict[str, bool]) -> None:
    """Random arrivals, beams and aborts on a small pool: invariants hold after each step, all get the right tokens."""
    chance = random.Random(seed)
    trace = random_trace(chance, **kinds)
    aborted: set[str] = set()
    longest_completion = chance.choice((8, 24, 24))
    longest_prompt = chance.choice((4, 20))
    pace = chance.choice((0, 0, 3))
    for number in range(chance.randint(5, 15)):
        num_beams = chance.choice((1, 1, 1, 2, 3))
        room = (trace.num_blocks // num_beams) * BLOCK_SIZE
        max_tokens = min(chance.choice((1, 6, longest_completion, longest_completion)), room - 1)
        prompt_ids = random_prompt(chance, longest=min(room - max_tokens, longest_prompt))
        salt = chance.choice((b"", b"", b"other"))
        trace.add(str(number), prompt_ids, max_tokens=max_tokens, num_beams=num_beams, salt=salt)
        for _ in range(chance.randint(0, pace)):
            if not trace.is_done:
                trace.step()
        victim = chance.choice(trace.requests)
        if chance.random() < 0.15 and not victim.is_finished:
            trace.scheduler.finish(victim, None)
            aborted.add(victim.request_id)
            trace.check_blocks()

    run_to_end(trace)

    assert trace.pool.num_used == 0
    assert set(trace.requests) <= set(trace.model.forgotten)
    trace.check_results(aborted=aborted)
