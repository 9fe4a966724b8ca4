"""The engine: requests in, one step at a time, text out. Binds scheduler, model, sampler and detokeniser."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, count
from time import perf_counter

import torch

from flashgen_runtime.config import EngineConfig
from flashgen_runtime.engine.base import EngineOutput, EngineRequest, EngineStats
from flashgen_runtime.engine.batch import build_batch
from flashgen_runtime.engine.beam_search import BeamSearch, Completion
from flashgen_runtime.engine.block_pool import BlockPool
from flashgen_runtime.engine.block_tables import BlockTables
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.choice_text import ChoiceText
from flashgen_runtime.engine.kv_cache import kv_cache_blocks
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampler import MASK_64, SampledToken, Sampler, choice_seed
from flashgen_runtime.engine.scheduler import Chunk, Scheduler
from flashgen_runtime.engine.speculative import Speculation
from flashgen_runtime.engine.tokenizer import Detokenizer, Tokenizer
from flashgen_runtime.errors import ConfigError, RequestError
from flashgen_runtime.messages import TokenLogprob


def can_speculate(model: CausalModel) -> bool:
    """Whether a model verifies several tokens of a text at once with the bits that it has for each alone."""
    return model.can_chunk and model.description.is_batch_invariant


@dataclass(slots=True)
class _OpenRequest:
    """A request that is not answered yet."""

    # One for each choice that is computed on its own; a beam search has one for all.
    requests: list[Request]
    texts: list[ChoiceText]

    # Choices whose last output is still to come.
    num_open: int


class LLMEngine:
    """Implements `engine.base.Engine` for a causal language model.

    Args:
        model: owned from now on; its KV cache is made here.
        tokenizer: turns completions into text.
        sizes: limits of batches and memory.
        max_context: longest prompt plus completion that the model takes.
        eos_ids: token ids that end a completion.
        speculation: guesses tokens, which change when a text comes and never what it is; owned from now on, and only
            where `can_speculate`.

    Raises:
        ConfigError: the KV cache's memory does not hold one block, or the model cannot have blocks of this size.
    """

    def __init__(
        self,
        model: CausalModel,
        tokenizer: Tokenizer,
        *,
        sizes: EngineConfig,
        max_context: int,
        eos_ids: frozenset[int] = frozenset(),
        speculation: Speculation | None = None,
    ) -> None:
        assert speculation is None or can_speculate(model), "the caller asks first"
        self._speculation = speculation
        num_blocks = _num_blocks(model, sizes, max_context=max_context)
        model.allocate_cache(num_blocks, sizes.block_size)
        self._pool = BlockPool(num_blocks)
        self._tables = BlockTables(
            self._pool, block_size=sizes.block_size, can_share=model.can_share_blocks, forget=model.forget
        )
        self._scheduler = Scheduler(
            self._tables,
            max_num_seqs=sizes.max_num_seqs,
            max_num_batched_tokens=sizes.max_num_batched_tokens,
            can_chunk=model.can_chunk,
            is_static=sizes.batching_mode == "static",
            speculation=self._speculation,
        )
        self._model = model
        self._sampler = Sampler()
        self._tokenizer = tokenizer
        self._single_texts: dict[int, str] = {}
        self._block_size = sizes.block_size
        self._max_context = min(max_context, self._tables.max_tokens)
        self._eos_ids = eos_ids
        self._open: dict[str, _OpenRequest] = {}
        self._num_steps = 0

        # Without prefix caching each request has a salt of its own: only its choices and beams share blocks.
        self._salts: Iterator[int] | None = None if sizes.prefix_caching else count()

    @property
    def has_work(self) -> bool:
        return bool(self._open)

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
            steps=self._num_steps,
            preemptions=self._scheduler.num_preemptions,
            prefix_queries=self._tables.num_queried_tokens,
            prefix_hits=self._tables.num_hit_tokens,
            proposed=self._speculation.num_proposed if self._speculation else 0,
            accepted=self._speculation.num_accepted if self._speculation else 0,
        )

    def add_request(self, request: EngineRequest) -> None:
        self._check(request)
        params = request.params
        seed = secrets.randbits(64) if params.seed is None else params.seed & MASK_64
        salt = b"" if self._salts is None else str(next(self._salts)).encode()
        requests = [
            Request(
                request_id=request.request_id,
                params=params,
                token_ids=list(request.prompt_ids),
                num_prompt_tokens=len(request.prompt_ids),
                seed=choice_seed(seed, index),
                eos_ids=self._eos_ids,
                index=index,
                token_mask=None if request.token_mask is None else request.token_mask.copy(),
                cache_salt=salt,
                predicted_ids=request.predicted_ids,
            )
            for index in range(params.n if params.num_beams == 1 else 1)
        ]
        self._tables.key_together(requests)
        for each in requests:
            self._scheduler.add(each)
        texts = [self._choice_text(request) for _ in range(params.n)]
        self._open[request.request_id] = _OpenRequest(requests, texts, num_open=params.n)

    def step(self) -> list[EngineOutput]:
        chunks, copies = self._scheduler.schedule()
        if not chunks:
            return []
        self._num_steps += 1
        started = perf_counter()
        if copies:
            self._model.copy_blocks(copies)
        batch = build_batch(chunks, block_size=self._block_size, device=self._model.device)
        logits = self._model.forward(batch)
        is_measured = self._speculation is not None and not any(_is_prefill(chunk) for chunk in chunks)
        num_rows = len(logits)
        outputs = self._take_tokens(batch.chunks, batch.sampled_chunks, logits)
        if self._speculation is not None and is_measured:
            self._speculation.note_step(num_rows, perf_counter() - started)
        return outputs

    def abort(self, request_id: str) -> None:
        opened = self._open.pop(request_id, None)
        if opened is None:
            return
        for request in opened.requests:
            if not request.is_finished:
                self._scheduler.finish(request, None)

    def close(self) -> None:
        self._model.close()
        if self._speculation is not None:
            self._speculation.close()

    def _take_tokens(
        self, chunks: list[Chunk], sampled_chunks: list[Chunk], logits: torch.Tensor
    ) -> list[EngineOutput]:
        """Samples the rows of `sampled_chunks`, tells the scheduler, and turns new tokens into text."""
        requests = [chunk.request for chunk in sampled_chunks]
        first_rows = [0, *accumulate(1 + len(request.proposed_ids) for request in requests)]
        row_of = dict(zip(requests, first_rows, strict=False))
        drawn = [chunk.request for chunk in sampled_chunks if chunk.gives_token]
        tokens: list[SampledToken] = []
        if drawn:
            rows = logits if len(drawn) == len(logits) else logits[[row_of[request] for request in drawn]]
            tokens = self._sampler.sample(rows, drawn)
        searched = [request for request in requests if request.beam_search is not None]

        advanced = self._scheduler.update(chunks, [token.token_id for token in tokens])
        outputs = [self._output(request, token) for request, token in zip(advanced, tokens, strict=True)]
        if any(request.proposed_ids for request in requests):
            outputs = self._verify(advanced, outputs, logits, row_of)
            self._scheduler.end_branches(chunks)
        if searched:
            outputs += self._advance_searches(searched, logits[[row_of[request] for request in searched]])
        return outputs

    def _verify(
        self, advanced: list[Request], outputs: list[EngineOutput], logits: torch.Tensor, row_of: dict[Request, int]
    ) -> list[EngineOutput]:
        """Goes on with the requests whose newest token is what was proposed, position by position.

        Each position is sampled as in a step of its own, so that a text is the same with and without proposals.
        """
        merged = dict(zip(advanced, outputs, strict=True))
        num_accepted = dict.fromkeys(advanced, 0)
        guesses = {request: [request] for request in advanced}
        for branch in row_of:
            if branch.branch_of is not None:
                guesses[branch.branch_of].append(branch)
        right = guesses
        for position in count():
            still_right = {request: _confirmed(request, found, position) for request, found in right.items()}
            going_on = [request for request, found in still_right.items() if found]
            if not going_on:
                break
            for request in going_on:
                if still_right[request][0] is not right[request][0]:
                    self._scheduler.adopt(still_right[request][0])
            right = {request: still_right[request] for request in going_on}
            rows = logits[[row_of[right[request][0]] + position + 1 for request in going_on]]
            for request, token in zip(going_on, self._sampler.sample(rows, going_on), strict=True):
                num_accepted[request] += 1
                self._scheduler.accept(request, token.token_id)
                merged[request] = _joined(merged[request], self._output(request, token))
        self._note_results(guesses, num_accepted)
        return list(merged.values())

    def _note_results(self, guesses: dict[Request, list[Request]], num_accepted: dict[Request, int]) -> None:
        """Tells whoever guessed how it went."""
        assert self._speculation is not None, "someone proposed"
        for request, verified in guesses.items():
            lengths = [len(guess.proposed_ids) for guess in verified]
            if any(lengths):
                self._speculation.note_result(
                    request, num_rows=sum(lengths), longest=max(lengths), num_accepted=num_accepted[request]
                )
            request.proposed_ids = []
            if request.is_finished:
                self._speculation.forget(request)

    def _advance_searches(self, beams: list[Request], logits: torch.Tensor) -> list[EngineOutput]:
        """Gives every beam search in the batch its next step; the outputs of those that are done."""
        row_of = {beam: row for row, beam in enumerate(beams)}
        searches = list(dict.fromkeys(beam.beam_search for beam in beams if beam.beam_search is not None))
        num_candidates = max(search.num_candidates for search in searches)
        log_probs, token_ids = self._sampler.beam_candidates(logits, beams, num_candidates)
        outputs: list[EngineOutput] = []
        for search in searches:
            rows = [row_of[beam] for beam in search.beams]
            self._scheduler.update_beams(search, log_probs[rows].numpy(), token_ids[rows].numpy())
            if search.is_done:
                outputs += self._search_outputs(search)
        return outputs

    def _output(self, request: Request, token: SampledToken) -> EngineOutput:
        """What a choice's newest token brings; a stop string in its text ends the choice."""
        opened = self._open[request.request_id]
        scan = opened.texts[request.index].push(token.token_id, is_last=request.is_finished)
        if scan.is_stopped:
            self._scheduler.finish(request, "stop")
        if request.is_finished:
            self._close_choice(opened)
        return EngineOutput(
            request_id=request.request_id,
            text=scan.text,
            finish_reason=request.finish_reason,
            prompt_tokens=request.num_prompt_tokens,
            completion_tokens=request.num_completion_tokens,
            cached_tokens=opened.requests[0].num_cached_tokens or 0,
            index=request.index,
            open_choices=opened.num_open,
            logprobs=self._logprobs(request, token),
        )

    def _search_outputs(self, search: BeamSearch) -> list[EngineOutput]:
        """The choices of a search that is done, best first, each with its whole text.

        Where a token mask allows fewer completions than there are choices, the last choices are empty.
        """
        request = search.request
        opened = self._open[request.request_id]
        outputs = []
        missing = [Completion([], "stop")] * (len(opened.texts) - len(search.completions))
        for index, completion in enumerate([*search.completions[: len(opened.texts)], *missing]):
            scan = opened.texts[index].push_all(completion.token_ids)
            self._close_choice(opened)
            outputs.append(
                EngineOutput(
                    request_id=request.request_id,
                    text=scan.text,
                    finish_reason="stop" if scan.is_stopped else completion.finish_reason,
                    prompt_tokens=request.num_prompt_tokens,
                    completion_tokens=len(completion.token_ids),
                    cached_tokens=request.num_cached_tokens or 0,
                    index=index,
                    open_choices=opened.num_open,
                )
            )
        return outputs

    def _choice_text(self, request: EngineRequest) -> ChoiceText:
        detokenizer = Detokenizer(self._tokenizer, request.prompt_ids, self._single_texts)
        return ChoiceText(detokenizer, stop=request.params.stop, eos_ids=self._eos_ids)

    def _close_choice(self, opened: _OpenRequest) -> None:
        opened.num_open -= 1
        if opened.num_open == 0:
            del self._open[opened.requests[0].request_id]

    def _logprobs(self, request: Request, token: SampledToken) -> list[TokenLogprob]:
        """Of the new token, if the request asked and the token has a text."""
        found = token.logprobs
        if found is None or token.token_id in request.eos_ids:
            return []
        top = [(self._tokenizer.decode([token_id]), token_id, logprob) for token_id, logprob in found.top]
        return [TokenLogprob(self._tokenizer.decode([token.token_id]), token.token_id, found.logprob, top)]

    def _check(self, request: EngineRequest) -> None:
        """Raises `RequestError` for a request that cannot be taken."""
        if request.request_id in self._open:
            message = f"a request with the id {request.request_id!r} is open"
            raise RequestError(message, kind="invalid_request", param="request_id")
        num_tokens = len(request.prompt_ids) + request.params.max_tokens
        if num_tokens > self._max_context:
            message = f"prompt and completion need {num_tokens} tokens, more than the context of {self._max_context}"
            raise RequestError(message, kind="context_length")
        if request.params.num_beams > 1 and request.params.logprobs is not None:
            message = "`logprobs` cannot be had with `num_beams`: a beam's tokens are chosen by its whole sequence"
            raise RequestError(message, kind="invalid_request", param="logprobs")


def _num_blocks(model: CausalModel, sizes: EngineConfig, *, max_context: int) -> int:
    """How many blocks the KV cache has; raises `ConfigError` if its memory does not hold even one."""
    block_bytes = sizes.block_size * model.block_bytes_per_token
    if sizes.kv_cache_bytes < block_bytes:
        size = f"{sizes.block_size} tokens, which takes {block_bytes}"
        problem = f"{sizes.kv_cache_bytes} bytes do not hold one block of {size}"
        raise ConfigError("engine.kv_cache_bytes", problem)
    return kv_cache_blocks(sizes, max_context=max_context, block_bytes=block_bytes)


def _is_prefill(chunk: Chunk) -> bool:
    return chunk.num_tokens > 1 + len(chunk.request.proposed_ids)


def _confirmed(request: Request, guesses: list[Request], position: int) -> list[Request]:
    """Those guesses that have a request's newest token at `position`, if the request goes on."""
    if request.is_finished:
        return []
    newest = request.token_ids[-1:]
    return [guess for guess in guesses if guess.proposed_ids[position : position + 1] == newest]


def _joined(first: EngineOutput, second: EngineOutput) -> EngineOutput:
    """What two tokens of one choice bring together."""
    return second._replace(text=first.text + second.text, logprobs=first.logprobs + second.logprobs)
