"""What every engine is asked: prompts as token ids and how many tokens each is continued by. All from fixed seeds."""

import random
from dataclasses import dataclass

from benchmarks.models import ModelShape


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are submitted at once."""

    name: str
    prompts: list[list[int]]
    output_lengths: list[int]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def num_output_tokens(self) -> int:
        return sum(self.output_lengths)


def mixed(shape: ModelShape, *, is_short: bool = False) -> Workload:
    """32 requests of very different lengths: 3,971 prompt tokens, 2,967 output tokens; 8 and about a tenth if short."""
    if is_short:
        return _workload("mixed", shape, _lengths(400, 8, 8, 96, seed=1), _lengths(300, 8, 8, 64, seed=2))
    return _workload("mixed", shape, _lengths(3971, 32, 16, 512, seed=1), _lengths(2967, 32, 16, 256, seed=2))


def batch(shape: ModelShape, size: int, *, prompt: int, output: int) -> Workload:
    """`size` equal requests."""
    return _workload(f"batch {size}", shape, [prompt] * size, [output] * size)


def prefill(shape: ModelShape, *, prompt: int) -> Workload:
    """One prompt, one token."""
    return _workload(f"prefill {prompt}", shape, [prompt], [1])


def prompts(shape: ModelShape, count: int) -> Workload:
    """Prompts of 32 to 256 tokens, one token each."""
    return _workload(f"{count} prompts", shape, _lengths(96 * count, count, 32, 256, seed=3), [1] * count)


def warm_up(shape: ModelShape) -> Workload:
    """Enough to have every thread started and every buffer touched."""
    return _workload("warm up", shape, [96, 16, 16], [8, 8, 8])


def _workload(name: str, shape: ModelShape, prompt_lengths: list[int], output_lengths: list[int]) -> Workload:
    # NOTE: the seed holds no name, so workloads share beginnings: prefix caches of peers have to be off.
    draw = random.Random(0)
    prompts = [[draw.randrange(shape.tokenizer_size) for _ in range(length)] for length in prompt_lengths]
    return Workload(name, prompts, output_lengths)


def _lengths(total: int, count: int, low: int, high: int, *, seed: int) -> list[int]:
    """`count` lengths between `low` and `high`, log-uniform by a seed, then moved by ones until they make `total`."""
    draw = random.Random(seed)
    lengths = [round(low * (high / low) ** draw.random()) for _ in range(count)]
    while missing := total - sum(lengths):
        step = 1 if missing > 0 else -1
        place = draw.randrange(count)
        if low <= lengths[place] + step <= high:
            lengths[place] += step
    return lengths
