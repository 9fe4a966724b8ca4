"""flashgen's engine as the peers are run: one child process, one model, the engine called directly.

Run by `benchmarks.systems`: python -m benchmarks.ours FOLDER PRECISION THREADS [profile|paged]
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.protocol import Generated, TokenCounter, serve, serve_generator
from flashgen_runtime import __version__
from flashgen_runtime.config import DType, EngineConfig, FolderSource, ModelConfig, Quantization, Task
from flashgen_runtime.engine import paths
from flashgen_runtime.engine.base import EngineRequest
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.speculative import Speculation
from flashgen_runtime.kernels.library import set_num_threads
from flashgen_runtime.loader.tokenizer import load_tokenizer
from flashgen_runtime.messages import GenerationParams

# Keys and values as OpenVINO has them by default wherever weights are quantised; beside bf16 weights they stay bf16.
KV_CACHE_DTYPES = {"bf16": "auto", "int8": "int8", "int4": "int8"}
DTYPES: dict[str, DType] = {"fp32": "float32", "bf16": "bfloat16", "int8": "bfloat16", "int4": "bfloat16"}
QUANTIZATIONS: dict[str, Quantization | None] = {"fp32": None, "bf16": None, "int8": "int8", "int4": "int4"}

# Room for every workload here; nothing reads a checkpoint's limit.
MAX_CONTEXT = 4096

SIZES = EngineConfig(
    batching_mode="continuous",
    max_num_seqs=64,
    max_num_batched_tokens=512,
    max_wait_seconds=0.0,
    kv_cache_dtype="auto",
    block_size=32,
    kv_cache_bytes=2 << 30,
    # The peers' are off too: rounds repeat the same prompts.
    prefix_caching=False,
    deterministic=False,
)


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine, and its model's description in words."""

    engine: LLMEngine
    settings: str


def load_engine(
    folder: Path,
    precision: str,
    threads: int,
    wrap: Callable[[CausalModel], CausalModel] = lambda model: model,
    speculation: Speculation | None = None,
) -> LoadedEngine:
    """Loads a checkpoint as a worker does; `wrap` may put something around the model."""
    torch.set_num_threads(threads)
    set_num_threads(threads)
    sizes = msgspec.structs.replace(SIZES, kv_cache_dtype=KV_CACHE_DTYPES.get(precision, "auto"))
    model = paths.load_causal_model(folder, model_config(folder, precision), sizes)
    tokenizer = load_tokenizer(folder, vocab_size=model.vocab_size)
    engine = LLMEngine(wrap(model), tokenizer, sizes=sizes, max_context=MAX_CONTEXT, speculation=speculation)
    found = model.description
    parts = [
        f"flashgen-runtime {__version__}",
        f"path {found.path}" + (f" ({found.path_reason})" if found.path_reason else ""),
        f"kernels {found.kernels}",
        f"weights {found.quantization or found.dtype}",
        f"kv {found.kv_cache_dtype}",
        f"{threads} threads",
        f"{sizes.max_num_batched_tokens} tokens per step",
    ]
    return LoadedEngine(engine, ", ".join(parts))


def model_config(folder: Path, precision: str, *, task: Task = "text-generation") -> ModelConfig:
    """A checkpoint's configuration as `service.yaml` has it, at "fp32", "bf16", "int8" or "int4"."""
    return ModelConfig(
        id=folder.name,
        aliases=(),
        task=task,
        source=FolderSource(folder=folder.name),
        dtype=DTYPES[precision],
        quantization=QUANTIZATIONS[precision],
        device="cpu",
        max_context=None,
        chat_template=None,
        generation_params=GenerationParams(),
        prefetch=(),
        speculative=None,
        weight_bytes=None,
        sequence_kv_bytes=None,
    )


class Flashgen:
    """A `Generator`."""

    def __init__(self, loaded: LoadedEngine) -> None:
        self.settings = loaded.settings
        self._engine = loaded.engine

    def generate(self, prompts: Sequence[Sequence[int]], output_lengths: Sequence[int]) -> Generated:
        return self.run(prompts, output_lengths, {"temperature": 0.0})

    def run(
        self, prompts: Sequence[Sequence[int]], output_lengths: Sequence[int], sampling: dict[str, Any]
    ) -> Generated:
        """As `generate`, with sampling parameters for all requests."""
        counter = TokenCounter(len(prompts))
        for place, (prompt, length) in enumerate(zip(prompts, output_lengths, strict=True)):
            params = SamplingParams(max_tokens=length, **sampling)
            self._engine.add_request(EngineRequest(str(place), list(prompt), params))
        while self._engine.has_work:
            for output in self._engine.step():
                counter.add(int(output.request_id), 1)
        return counter.result()


class Profiled:
    """Answers `{"prompts", "output_lengths", "sampling"}` by `{"seconds", "parts", "operations"}`.

    `seconds` are those of all steps, `parts` those of the calls that a step makes: it times them, and needs the
    engine's private names for that. With `"with_operations": true` each step's operations are run once more, one at a
    time, and timed by their kind; native models only.
    """

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        self._seconds: dict[str, float] = {}
        self._operations: dict[str, float] = {}
        self._with_operations = False

        def wrap(model: CausalModel) -> Any:
            timed = _timed(model, "model", self._seconds)
            timed.forward = lambda batch: self._forward(model, batch)
            return timed

        loaded = load_engine(folder, precision, threads, wrap=wrap)
        engine: Any = loaded.engine
        engine._scheduler = _timed(engine._scheduler, "scheduler", self._seconds)
        engine._sampler = _timed(engine._sampler, "sampler", self._seconds)
        self.settings = loaded.settings
        self._generator = Flashgen(loaded)

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        self._seconds.clear()
        self._operations.clear()
        self._with_operations = request.get("with_operations", False)
        generated = self._generator.run(request["prompts"], request["output_lengths"], request["sampling"])
        return {"seconds": generated.seconds, "parts": dict(self._seconds), "operations": dict(self._operations)}

    def _forward(self, model: Any, batch: Any) -> torch.Tensor:
        started = time.perf_counter()
        logits: torch.Tensor = model.forward(batch)
        _add(self._seconds, "model", time.perf_counter() - started)
        if self._with_operations:
            # Writes the same keys, values and logits again.
            for name, seconds in model.program.profile(batch).items():
                _add(self._operations, name, seconds)
        return logits


class _Timed:
    """Stands before an object and adds up how long its methods take."""

    def __init__(self, target: Any, label: str, seconds: dict[str, float]) -> None:
        self._target, self._label, self._seconds = target, label, seconds

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return value(*arguments, **options)
            finally:
                _add(self._seconds, self._label, time.perf_counter() - started)

        return timed


def _timed(target: Any, label: str, seconds: dict[str, float]) -> Any:
    return _Timed(target, label, seconds)


def _add(seconds: dict[str, float], label: str, more: float) -> None:
    seconds[label] = seconds.get(label, 0.0) + more


def main(folder: Path, precision: str, threads: int, mode: str) -> None:
    """Serves until the other side hangs up."""

    def profile() -> tuple[str, Callable[[dict[str, Any]], dict[str, object]]]:
        profiled = Profiled(folder, precision, threads)
        return profiled.settings, profiled.answer

    if mode == "paged":
        # No option chooses a path, so the native one is made to decline.
        vars(paths)["reason_against"] = lambda _: "in this comparison"
    if mode == "profile":
        serve(profile)
    else:
        serve_generator(lambda: Flashgen(load_engine(folder, precision, threads)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "native")
