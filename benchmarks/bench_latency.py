"""Time to the first token and time per output token under load: a generated service beside `transformers serve`.

Run: python -m benchmarks.bench_latency [--quick] [--requests N] [--seconds N] [--peer-precision fp32|bf16]
Model S over HTTP, streamed, greedy, prompts of 16 to 256 tokens, completions of 16 to 64. Requests arrive as a Poisson
process at 50, 80 and 95 % of the slower system's capacity, which is what it does when all requests come at once; both
systems get the same requests at the same times. Times are counted from the moment a request was due. The systems are
asked in turn; the one that waits is idle.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generated_service import generated_service
from benchmarks.http_client import Connection
from benchmarks.local_processes import free_port, running, wait_until_ready
from benchmarks.models import CACHE, S, model_folder
from benchmarks.peers import transformers_generate
from benchmarks.report import Aim, Row, print_report, row_of
from benchmarks.systems import SystemFailedError

LOGS = CACHE / "logs"
OURS, THEIRS = "flashgen", "transformers serve"
LOADS = (0.5, 0.8, 0.95)
AIM_LOAD, MOST_OF_THEIR_TTFT = 0.8, 1 / 3
SEED = 4
PATH = "/v1/completions"
SERVER = "bench"
SPEC = """\
name: bench
apis:
  - path: /v1/completions
servers:
  - name: bench
    model: {type: text_generation, uri: ./models/bench-s}
    resources: {cpus: 2, memory: 4GiB}
    rpc_port: 6500
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and when after the start."""

    due_seconds: float
    prompt: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds since the request was due."""

    first_token: float
    last_token: float
    num_tokens: int

    @property
    def seconds_per_token(self) -> float:
        """Of all tokens but the first."""
        return (self.last_token - self.first_token) / (self.num_tokens - 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """How many requests each load has: this many, or fewer that are due within some seconds."""

    num_requests: int
    most_seconds: float


@dataclass(frozen=True, slots=True)
class Service:
    """A server that speaks OpenAI's completions."""

    port: int
    model: str

    # It has to be asked to tell how many tokens it gave.
    asks_for_usage: bool


def main() -> None:
    """Starts both, finds the capacities, loads them in turn, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 requests")
    parser.add_argument("--requests", type=int, default=100, help="at each load")
    parser.add_argument("--seconds", type=float, default=45.0, help="of arrivals at each load, at most")
    parser.add_argument("--peer-precision", default="bf16", help="of `transformers serve`: fp32 or bf16")
    arguments = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        services = {
            OURS: stack.enter_context(_generated(folder)),
            THEIRS: stack.enter_context(_transformers(arguments.peer_precision)),
        }
        plan = Plan(8, 10.0) if arguments.quick else Plan(arguments.requests, arguments.seconds)
        rows = asyncio.run(_measure(services, plan, arguments.peer_precision))
    print_report("latency", rows, _aims(rows), ["flashgen-runtime", "torch", "fastapi", "uvicorn"])


async def _measure(services: dict[str, Service], plan: Plan, peer_precision: str) -> list[Row]:
    precisions = {OURS: "bf16", THEIRS: peer_precision}
    draw = random.Random(SEED)
    texts = _texts()
    # Prompts are never repeated: both systems would find them in their prefix caches.
    warm_up, at_once = (_requests(min(32, plan.num_requests), texts, draw) for _ in range(2))
    rows, capacities = [], []
    for name, service in services.items():
        await _ask_all(service, warm_up)
        started = time.perf_counter()
        await _ask_all(service, at_once)
        capacities.append(len(at_once) / (time.perf_counter() - started))
        workload = f"{len(at_once)} at once"
        rows.append(
            row_of(capacities[-1:], system=name, precision=precisions[name], workload=workload, metric="requests/s")
        )
    for load in LOADS:
        arrivals = _at_rate(_requests(plan.num_requests, texts, draw), load * min(capacities), draw)
        arrivals = [request for request in arrivals if request.due_seconds <= plan.most_seconds]
        for name, service in services.items():
            answers = await _ask_all(service, arrivals)
            workload = f"{load:.0%} of the slower one's capacity"
            for metric, milliseconds in _percentiles(answers).items():
                rows.append(
                    row_of([milliseconds], system=name, precision=precisions[name], workload=workload, metric=metric)
                )
            print(f"{name}, {workload}: done", file=sys.stderr)
    return rows


def _percentiles(answers: Sequence[Answer]) -> dict[str, float]:
    firsts = sorted(1000 * answer.first_token for answer in answers)
    per_token = sorted(1000 * answer.seconds_per_token for answer in answers)
    return {
        f"{label} p{percent} ms": values[min(len(values) - 1, len(values) * percent // 100)]
        for label, values in (("TTFT", firsts), ("TPOT", per_token))
        for percent in (50, 99)
    }


def _aims(rows: list[Row]) -> list[Aim]:
    workload = f"{AIM_LOAD:.0%} of the slower one's capacity"
    found = {row.system: row.value for row in rows if row.workload == workload and row.metric == "TTFT p99 ms"}
    what = f"p99 TTFT as a part of that of `transformers serve`, {workload}"
    return [
        Aim(id="ttft-p99", what=what, aim=round(MOST_OF_THEIR_TTFT, 3), value=round(found[OURS] / found[THEIRS], 3))
    ]


async def _ask_all(service: Service, requests: Sequence[Request]) -> list[Answer]:
    started = time.perf_counter()
    return list(await asyncio.gather(*(_ask(service, request, started) for request in requests)))


async def _ask(service: Service, request: Request, started: float) -> Answer:
    """Waits until the request is due, then reads its stream; raises if the number of tokens is wrong."""
    due = started + request.due_seconds
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    body: dict[str, object] = {
        "model": service.model,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "stream": True,
    }
    if service.asks_for_usage:
        body |= {"stream_options": {"include_usage": True}, "temperature": 0}
    first = last = ended = num_tokens = 0.0
    async with Connection(service.port) as connection:
        async for event in connection.stream(PATH, body):
            now = time.perf_counter() - due
            if choices := event.get("choices", []):
                # Tokens of random weights may all be parts of characters: then the end is the first that is seen.
                ended = now
                if any(choice["text"] for choice in choices):
                    first, last = first or now, now
            if usage := event.get("usage"):
                num_tokens = usage["completion_tokens"]
    if num_tokens != request.max_tokens or not ended:
        raise SystemFailedError(f"port {service.port}: expected {request.max_tokens} tokens, got {num_tokens}")
    return Answer(first or ended, last or ended, int(num_tokens))


def _requests(count: int, texts: Sequence[str], draw: random.Random) -> list[Request]:
    return [_request(texts, draw) for _ in range(count)]


def _request(texts: Sequence[str], draw: random.Random) -> Request:
    """At once; prompts are cut by characters, of which the tokenizer takes about three for a token."""
    num_characters = 3 * round(16 * (256 / 16) ** draw.random())
    text = draw.choice(texts)
    start = draw.randrange(len(text) - num_characters)
    return Request(0.0, text[start : start + num_characters], round(16 * (64 / 16) ** draw.random()))


def _at_rate(requests: Sequence[Request], per_second: float, draw: random.Random) -> list[Request]:
    due, arrivals = 0.0, []
    for request in requests:
        due += draw.expovariate(per_second)
        arrivals.append(Request(due, request.prompt, request.max_tokens))
    return arrivals


def _texts() -> list[str]:
    """Long modules of Python's own library, all of them ASCII."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    texts = [file.read_text(encoding="utf-8") for file in files if file.stat().st_size > 20_000]
    return [text for text in texts if text.isascii()]


@contextmanager
def _generated(folder: Path) -> Iterator[Service]:
    models = folder / "models"
    models.mkdir()
    (models / "bench-s").symlink_to(model_folder(S))
    spec = folder / "flashgen.yaml"
    spec.write_text(SPEC)
    with generated_service(
        spec, folder / "bench", server=SERVER, models=folder / "models", log=LOGS / "service"
    ) as port:
        yield Service(port, "bench-s", asks_for_usage=True)


@contextmanager
def _transformers(precision: str) -> Iterator[Service]:
    port = free_port()
    command = transformers_generate.serve_command(S, precision, port)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with running(command, environment, log=LOGS / "transformers-serve.log"):
        wait_until_ready(f"http://127.0.0.1:{port}/health", limit_seconds=120)
        yield Service(port, str(model_folder(S)), asks_for_usage=False)


if __name__ == "__main__":
    main()
