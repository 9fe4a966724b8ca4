"""The engine: requests in, one step at a time, text out. Binds scheduler, model runner, sampler and detokeniser."""

import secrets
from dataclasses import dataclass

from flashgen_runtime.config import EngineConfig
from flashgen_runtime.engine.base import EngineOutput, EngineRequest, EngineStats
from flashgen_runtime.engine.batch import build_batch
from flashgen_runtime.engine.block_pool import BlockPool
from flashgen_runtime.engine.kv_cache import KVCache, num_blocks_in
from flashgen_runtime.engine.model_runner import ModelRunner, take_over_attention
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampler import MASK_64, sample
from flashgen_runtime.engine.scheduler import Scheduler
from flashgen_runtime.engine.stop_strings import StopStrings
from flashgen_runtime.engine.tokenizer import Detokenizer, Tokenizer
from flashgen_runtime.errors import RequestError
from flashgen_runtime.loader.base import LoadedModel


@dataclass(frozen=True, slots=True)
class _Completion:
    """A request and its way from tokens to text."""

    request: Request
    detokenizer: Detokenizer
    stop_strings: StopStrings


class LLMEngine:
    """Implements `engine.base.Engine` for a causal language model.

    Args:
        model: a model whose attention is ours, see `loader.load_model`.
        tokenizer: turns completions into text.
        sizes: limits of batches and memory.
        max_context: longest prompt plus completion that the model takes.
        eos_ids: token ids that end a completion.

    Raises:
        WeightsError: the model class does not run on flat batches.
        ConfigError: the KV cache's memory does not hold one block.
    """

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer,
        *,
        sizes: EngineConfig,
        max_context: int,
        eos_ids: frozenset[int] = frozenset(),
    ) -> None:
        layers = take_over_attention(model)
        num_blocks = num_blocks_in(sizes.kv_cache_bytes, layers, block_size=sizes.block_size, dtype=model.dtype)
        cache = KVCache(
            layers, num_blocks=num_blocks, block_size=sizes.block_size, dtype=model.dtype, device=model.device
        )
        self._pool = BlockPool(num_blocks)
        self._scheduler = Scheduler(
            self._pool,
            block_size=sizes.block_size,
            max_num_seqs=sizes.max_num_seqs,
            max_num_batched_tokens=sizes.max_num_batched_tokens,
        )
        self._runner = ModelRunner(model, cache)
        self._device = model.device
        self._tokenizer = tokenizer
        self._block_size = sizes.block_size
        self._max_context = min(max_context, self._scheduler.max_tokens)
        self._eos_ids = eos_ids
        self._completions: dict[str, _Completion] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._completions)

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            blocks_used=self._pool.num_used,
            blocks_total=self._pool.num_blocks,
            steps=self._runner.num_forward_passes,
            preemptions=self._scheduler.num_preemptions,
        )

    def add_request(self, request: EngineRequest) -> None:
        if request.request_id in self._completions:
            message = f"a request with the id {request.request_id!r} is open"
            raise RequestError(message, kind="invalid_request", param="request_id")
        num_tokens = len(request.prompt_ids) + request.params.max_tokens
        if num_tokens > self._max_context:
            message = f"prompt and completion need {num_tokens} tokens, more than the context of {self._max_context}"
            raise RequestError(message, kind="context_length")
        seed = secrets.randbits(64) if request.params.seed is None else request.params.seed & MASK_64
        state = Request(
            request_id=request.request_id,
            params=request.params,
            token_ids=list(request.prompt_ids),
            num_prompt_tokens=len(request.prompt_ids),
            seed=seed,
            eos_ids=self._eos_ids,
        )
        self._scheduler.add(state)
        detokenizer = Detokenizer(self._tokenizer, request.prompt_ids)
        self._completions[request.request_id] = _Completion(state, detokenizer, StopStrings(request.params.stop))

    def step(self) -> list[EngineOutput]:
        chunks = self._scheduler.schedule()
        if not chunks:
            return []
        batch = build_batch(chunks, block_size=self._block_size, device=self._device)
        logits = self._runner.forward(batch)
        token_ids = sample(logits, [chunk.request for chunk in batch.sampled_chunks])
        advanced = self._scheduler.update(batch.chunks, token_ids)
        return [self._output(request) for request in advanced]

    def abort(self, request_id: str) -> None:
        completion = self._completions.pop(request_id, None)
        if completion is not None:
            self._scheduler.finish(completion.request, None)

    def _output(self, request: Request) -> EngineOutput:
        """The text that the request's newest token brings; may end the request by a stop string."""
        completion = self._completions[request.request_id]
        text = self._new_text(completion)
        if request.is_finished:
            del self._completions[request.request_id]
        return EngineOutput(
            request_id=request.request_id,
            text=text,
            finish_reason=request.finish_reason,
            prompt_tokens=request.num_prompt_tokens,
            completion_tokens=request.num_completion_tokens,
        )

    def _new_text(self, completion: _Completion) -> str:
        request, detokenizer, stop_strings = completion.request, completion.detokenizer, completion.stop_strings
        newest = request.token_ids[-1]
        text = "" if newest in request.eos_ids else detokenizer.push(newest)
        if request.is_finished:
            text += detokenizer.flush()
        scan = stop_strings.push(text)
        if scan.is_stopped:
            self._scheduler.finish(request, "stop")
            return scan.text
        return scan.text + stop_strings.flush() if request.is_finished else scan.text
