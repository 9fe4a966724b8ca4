"""Requests for many models, some more popular than others, and what a system made of them. Standard library only."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

PROMPT = "The quick brown fox jumps over."

# How often memory is looked at: more would take part in what is measured.
SAMPLE_SECONDS = 0.01


class Arrival(NamedTuple):
    """A request: when it comes, after the beginning, and the number of its model."""

    seconds: float
    model: int


# Gives the seconds until the first token of one request, which then runs to its end.
Ask = Callable[[int], Awaitable[float]]


def zipf_arrivals(num_models: int, num_requests: int, *, per_second: float, seed: int = 0) -> list[Arrival]:
    """Requests at random times; of the models the first is asked most, the k-th 1/k as often."""
    rng = random.Random(seed)
    weights = [1 / rank for rank in range(1, num_models + 1)]
    seconds = 0.0
    arrivals = []
    for model in rng.choices(range(num_models), weights, k=num_requests):
        seconds += rng.expovariate(per_second)
        arrivals.append(Arrival(seconds, model))
    return arrivals


async def play(arrivals: Sequence[Arrival], ask: Ask) -> list[float]:
    """Sends every request at its time, whatever became of those before; their seconds to the first token."""
    began = time.perf_counter()

    async def one(arrival: Arrival) -> float:
        await asyncio.sleep(began + arrival.seconds - time.perf_counter())
        return await ask(arrival.model)

    return await asyncio.gather(*map(one, arrivals))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
