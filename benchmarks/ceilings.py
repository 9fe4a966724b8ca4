"""What this machine could do at most: bytes read per second, operations per second of a large matrix product.

Run: python -m benchmarks.ceilings THREADS   (prints one line of JSON)
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks.models import ROOT, ModelShape
from benchmarks.workloads import Workload

# What the kernels' formats keep for a weight, in layers and in the head: int4 has groups of 64 with a scale of two
# bytes, its head is int8.
WEIGHT_BYTES = {"bf16": (2.0, 2.0), "int8": (1.0, 1.0), "int4": (0.5 + 2 / 64, 1.0)}

# bf16; int8 keys and values would halve it.
KV_BYTES = 2.0
TOKEN_BUDGET = 512


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Best of several tries each."""

    read_bytes_per_second: float

    # fp32, and by precision: the fastest way of the machine to multiply such numbers.
    fp32_operations_per_second: float
    operations_per_second: dict[str, float]

    def best(self, other: "Ceilings") -> "Ceilings":
        """The larger of each: whatever else the machine did while one was measured is no ceiling."""
        rates, others = self.operations_per_second, other.operations_per_second
        return Ceilings(
            read_bytes_per_second=max(self.read_bytes_per_second, other.read_bytes_per_second),
            fp32_operations_per_second=max(self.fp32_operations_per_second, other.fp32_operations_per_second),
            operations_per_second={precision: max(rates[precision], others[precision]) for precision in rates},
        )

    def workload_seconds(self, shape: ModelShape, workload: Workload, precision: str) -> float:
        """The least time for a workload in steps of `TOKEN_BUDGET` tokens, each the larger of its two bounds."""
        return sum(self._step_seconds(shape, step, precision) for step in _steps(workload))

    def decode_tokens_per_second(self, shape: ModelShape, size: int, context: float, precision: str) -> float:
        """Of `size` sequences that decode with `context` tokens each in the KV cache."""
        step = _Step(num_tokens=size, num_sampled=size, context=size * context, attended=size * context)
        return size / self._step_seconds(shape, step, precision)

    def _step_seconds(self, shape: ModelShape, step: "_Step", precision: str) -> float:
        weight_bytes, head_bytes = WEIGHT_BYTES[precision]
        if not step.num_sampled:
            head_bytes = 0.0
        num_bytes = shape.decode_bytes(weight_bytes, head_bytes, kv_bytes=KV_BYTES, context=step.context)
        operations = shape.operations(step.num_tokens, sampled=step.num_sampled, attended=step.attended)
        return max(num_bytes / self.read_bytes_per_second, operations / self.operations_per_second[precision])


def measure_ceilings(threads: int) -> Ceilings:
    """In a process of its own, so that its threads are gone when the systems run."""
    command = [sys.executable, "-m", "benchmarks.ceilings", str(threads)]
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Ceilings(**json.loads(answer))


@dataclass(slots=True)
class _Step:
    """One forward pass of an engine that batches continuously."""

    num_tokens: int = 0
    num_sampled: int = 0

    # Tokens in the KV cache that the pass reads, and pairs of a token and one that it sees.
    context: float = 0
    attended: float = 0

    def add(self, computed: int, num_tokens: int, *, is_sampled: bool) -> None:
        self.num_tokens += num_tokens
        self.num_sampled += is_sampled
        self.context += computed + num_tokens
        self.attended += num_tokens * computed + num_tokens * (num_tokens + 1) // 2


def _steps(workload: Workload) -> list[_Step]:
    """All requests at once, decodes first, then prompts in order of arrival as far as the budget goes."""
    lengths = [len(prompt) for prompt in workload.prompts]
    ends = [length + output for length, output in zip(lengths, workload.output_lengths, strict=True)]
    computed = [0] * len(lengths)
    steps = []
    # The last token of a request is never computed.
    while any(done < end - 1 for done, end in zip(computed, ends, strict=True)):
        step = _Step()
        decoding = [i for i, done in enumerate(computed) if lengths[i] <= done < ends[i] - 1]
        for request in decoding:
            step.add(computed[request], 1, is_sampled=True)
            computed[request] += 1
        for request, length in enumerate(lengths):
            chunk = min(length - computed[request], TOKEN_BUDGET - step.num_tokens)
            if chunk > 0:
                step.add(computed[request], chunk, is_sampled=computed[request] + chunk == length)
                computed[request] += chunk
        steps.append(step)
    return steps


def _measure(threads: int) -> Ceilings:
    # The parent imports this module for its arithmetic and must not start torch's threads.
    import torch

    torch.set_num_threads(threads)
    size = 2048
    operations = 2.0 * size**3
    large = torch.ones(2**28)
    reads = (large.sum, large.max, large.view(torch.int64).sum)
    bandwidth = max(large.nbytes / _best_seconds(read, tries=5) for read in reads)
    fp32 = torch.randn(size, size)
    bf16 = fp32.bfloat16()
    int8 = torch.randint(-127, 127, (size, size), dtype=torch.int8)
    fp32_rate = operations / _best_seconds(lambda: fp32 @ fp32, tries=5)
    bf16_rate = operations / _best_seconds(lambda: bf16 @ bf16, tries=5)
    int8_rate = operations / _best_seconds(lambda: torch._int_mm(int8, int8), tries=5)
    integer = max(int8_rate, bf16_rate, fp32_rate)
    rates = {"bf16": max(bf16_rate, fp32_rate), "int8": integer, "int4": integer}
    return Ceilings(bandwidth, fp32_rate, rates)


def _best_seconds(call: Callable[[], object], *, tries: int) -> float:
    seconds = []
    for _ in range(tries + 1):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    # The first call prepares.
    return min(seconds[1:])


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(int(sys.argv[1])))))
