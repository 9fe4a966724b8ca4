"""`models run`: one answer of one model, without a service around it."""

import os
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from flashgen_runtime.config import EngineConfig, FolderSource, ModelConfig
from flashgen_runtime.engine.threads import share_processors
from flashgen_runtime.errors import RequestError, WeightsError
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.checkpoint import is_encoder, read_json
from flashgen_runtime.loader.sources import canonical_uri, is_folder
from flashgen_runtime.loader.store import Store
from flashgen_runtime.messages import GenerateRequest, GenerationParams, RequestFailure, TextDelta
from flashgen_runtime.models.base import ServedModel
from flashgen_runtime.models.registry import load_served_model
from flashgen_runtime.models_command.models import store_of, uri_of
from flashgen_runtime.models_command.pull import pull_visibly
from flashgen_runtime.models_command.terminal import complain

# One request, with a cache for the longest context that fits.
_ENGINE = EngineConfig(
    batching_mode="continuous",
    max_num_seqs=1,
    max_num_batched_tokens=2048,
    max_wait_seconds=0.0,
    kv_cache_dtype="auto",
    block_size=32,
    kv_cache_bytes=1 << 30,
    prefix_caching=False,
    deterministic=False,
)

_REQUEST_ID = "run"


class Answer(NamedTuple):
    """How an answer came."""

    seconds_to_first_token: float
    seconds: float
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens_per_second(self) -> float | None:
        """Of all tokens but the first; `None` for a single one."""
        spent = self.seconds - self.seconds_to_first_token
        return (self.completion_tokens - 1) / spent if self.completion_tokens > 1 and spent > 0 else None


def run(options: Namespace) -> int:
    """Streams the answer to stdout and says on stderr how fast it came."""
    store = store_of(options)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    path = _checkpoint(store, options)
    share_processors(os.cpu_count() or 1, torch_computes=True)
    began = time.perf_counter()
    served = load_served_model(_config(options, path), _ENGINE, path, access=WeightAccess(store=store))
    loaded = time.perf_counter() - began
    answer = _answer(served, _request(options, served, prompt))
    complain(_report(served, answer, loaded=loaded))
    return 0


def _checkpoint(store: Store, options: Namespace) -> Path:
    """A folder as it lies there, else a model of the store, pulled if it is not there."""
    uri = uri_of(options.model)
    path = Path(canonical_uri(uri)) if is_folder(uri) else pull_visibly(store, uri, options.revision).path
    if not path.is_dir():
        raise WeightsError(path, "no such folder")
    if is_encoder(read_json(path / "config.json").get("model_type")):
        raise WeightsError(path, "gives embeddings, it generates no text")
    return path


def _config(options: Namespace, path: Path) -> ModelConfig:
    return ModelConfig(
        id=options.model,
        aliases=(),
        task="text-generation",
        source=FolderSource(folder=str(path)),
        dtype=options.dtype,
        quantization=options.quantization,
        device=options.device,
        max_context=None,
        chat_template=None,
        generation_params=GenerationParams(),
        prefetch=(),
        speculative=None,
        weight_bytes=None,
        sequence_kv_bytes=None,
    )


def _request(options: Namespace, served: ServedModel, prompt: str) -> GenerateRequest:
    is_chat = not options.raw and served.status.chat_template != "none"
    return GenerateRequest(
        request_id=_REQUEST_ID,
        model=options.model,
        prompt=None if is_chat else prompt,
        messages=[{"role": "user", "content": prompt}] if is_chat else None,
        params=GenerationParams(max_tokens=options.max_tokens, temperature=options.temperature, seed=options.seed),
    )


def _answer(served: ServedModel, request: GenerateRequest) -> Answer:
    """Writes the answer as it comes."""
    began = time.perf_counter()
    served.add(served.prepare(request))
    first: float | None = None
    while served.has_work:
        for reply in served.step():
            if isinstance(reply, RequestFailure):
                raise RequestError(reply.message, kind=reply.kind)
            assert isinstance(reply, TextDelta), "a model that generates text answers with text"
            if first is None and reply.completion_tokens:
                first = time.perf_counter() - began
            sys.stdout.write(reply.text)
            sys.stdout.flush()
            last = reply
    sys.stdout.write("\n")
    seconds = time.perf_counter() - began
    return Answer(seconds if first is None else first, seconds, last.prompt_tokens, last.completion_tokens)


def _report(served: ServedModel, answer: Answer, *, loaded: float) -> str:
    status = served.status
    precision = "-".join(filter(None, (status.dtype, status.quantization)))
    rate = "" if answer.tokens_per_second is None else f" at {answer.tokens_per_second:.1f} tokens/s"
    return (
        f"loaded in {loaded:.2f} s ({precision}, {status.path} path, {status.kernels}); "
        f"first token after {answer.seconds_to_first_token:.3f} s ({answer.prompt_tokens} tokens of prompt); "
        f"{answer.completion_tokens} tokens{rate}"
    )
