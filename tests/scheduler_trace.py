"""A scheduler beside a model that follows a law, with a check of every invariant after each step."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from flashgen_runtime.engine.beam_search import BeamSearch, Completion
from flashgen_runtime.engine.block_pool import BlockPool
from flashgen_runtime.engine.block_tables import BlockTables
from flashgen_runtime.engine.request import Request, RequestState
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.scheduler import Chunk, Scheduler
from tests.law_model import VOCAB_SIZE, LawModel, greedy_by_law, logits_of

BLOCK_SIZE = 4
ALL_IDS = np.arange(VOCAB_SIZE)


def request_of(
    name: str, prompt_ids: list[int], *, max_tokens: int, num_beams: int = 1, eos_ids: frozenset[int] = frozenset()
) -> Request:
    return Request(
        request_id=name,
        params=SamplingParams(max_tokens=max_tokens, temperature=0, num_beams=num_beams),
        token_ids=list(prompt_ids),
        num_prompt_tokens=len(prompt_ids),
        seed=0,
        eos_ids=eos_ids,
    )


def log_probs_of(rows: list[np.ndarray]) -> np.ndarray:
    logits = np.stack(rows).astype(np.float64)
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def beams_by_law(request: Request) -> list[Completion]:
    """What a beam search must find: the search alone, without blocks and batches."""
    prompt = request_of(
        "law",
        request.token_ids[: request.num_prompt_tokens],
        max_tokens=request.params.max_tokens,
        num_beams=request.params.num_beams,
        eos_ids=request.eos_ids,
    )
    search = BeamSearch(prompt)
    while not search.is_done:
        log_probs = log_probs_of([logits_of(beam.token_ids) for beam in search.beams])
        continuations = search.advance(log_probs, np.tile(ALL_IDS, (len(search.beams), 1)))
        search.beams = [
            request_of("law", [*beam.token_ids, token_id], max_tokens=1, eos_ids=prompt.eos_ids)
            for beam, token_id, _ in continuations
        ]
        for beam in search.beams:
            beam.num_prompt_tokens = prompt.num_prompt_tokens
    return search.completions


@dataclass
class Trace:
    """A scheduler, all requests it was given, and a check of every invariant after each step."""

    num_blocks: int = 8
    max_num_seqs: int = 8
    budget: int = 16
    can_chunk: bool = True
    can_share: bool = True
    is_static: bool = False
    eos_ids: frozenset[int] = frozenset()
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.num_blocks)
        self.model = LawModel(can_chunk=self.can_chunk, can_share_blocks=self.can_share)
        self.model.allocate_cache(self.num_blocks, BLOCK_SIZE)
        self.tables = BlockTables(self.pool, block_size=BLOCK_SIZE, can_share=self.can_share, forget=self.model.forget)
        self.scheduler = Scheduler(
            self.tables,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.budget,
            can_chunk=self.can_chunk,
            is_static=self.is_static,
        )

    def add(
        self, name: str, prompt_ids: list[int], *, max_tokens: int, num_beams: int = 1, salt: bytes = b""
    ) -> Request:
        request = request_of(name, prompt_ids, max_tokens=max_tokens, num_beams=num_beams, eos_ids=self.eos_ids)
        request.cache_salt = salt
        self.scheduler.add(request)
        self.requests.append(request)
        return request

    @property
    def is_done(self) -> bool:
        return all(request.is_finished for request in self.requests)

    def step(self) -> list[Chunk]:
        """One step, as the engine takes it."""
        decoding = [request for request in self.requests if _is_decoding(request)]
        chunks, copies = self.scheduler.schedule()
        self._check_decodes(decoding, chunks)
        self._check_chunks(chunks)
        self._check_copies(chunks, copies)
        self.model.copy_blocks(copies)
        rows = self.model.compute(chunks)
        sampled = [chunk.request for chunk in chunks if chunk.reaches_end]
        plain = [int(row.argmax()) for row, request in zip(rows, sampled, strict=True) if not request.beam_search]
        self.scheduler.update(chunks, plain)
        self._update_beams(rows, sampled)
        self.check_blocks()
        return chunks

    def _update_beams(self, rows: list[np.ndarray], sampled: list[Request]) -> None:
        for search in {request.beam_search for request in sampled if request.beam_search}:
            row_of = dict(zip(sampled, rows, strict=True))
            log_probs = log_probs_of([row_of[beam] for beam in search.beams])
            self.scheduler.update_beams(search, log_probs, np.tile(ALL_IDS, (len(log_probs), 1)))

    def _check_decodes(self, decoding: list[Request], chunks: list[Chunk]) -> None:
        """Whoever decodes has a token in every step, unless it was preempted."""
        computed = {chunk.request for chunk in chunks}
        for request in decoding:
            assert request in computed or request.state is RequestState.WAITING

    def _check_chunks(self, chunks: list[Chunk]) -> None:
        assert chunks, "requests wait, and the step computes nothing"
        assert all(chunk.num_tokens > 0 for chunk in chunks)
        num_prompts = sum(chunk.num_tokens > 1 for chunk in chunks)
        if self.can_chunk or num_prompts > 1:
            assert sum(chunk.num_tokens for chunk in chunks) <= self.budget
        assert len({id(chunk.request) for chunk in chunks}) == len(chunks) <= self.max_num_seqs
        for request, num_tokens in chunks:
            assert len(request.block_table) * BLOCK_SIZE >= request.num_computed_tokens + num_tokens

    def _check_copies(self, chunks: list[Chunk], copies: list[tuple[int, int]]) -> None:
        """No block is written that two requests refer to, and no copy meets another."""
        for request, num_tokens in chunks:
            first = request.num_computed_tokens // BLOCK_SIZE
            last = (request.num_computed_tokens + num_tokens - 1) // BLOCK_SIZE
            assert all(self.pool.num_references(block) == 1 for block in request.block_table[first : last + 1])
        targets = [target for _, target in copies]
        assert len(targets) == len(set(targets))
        assert not set(targets) & {source for source, _ in copies}

    def check_blocks(self) -> None:
        held: Counter[int] = Counter()
        for request in self.requests:
            rows = request.beam_search.beams if request.beam_search else [request]
            for row in {request, *rows}:
                held.update(row.block_table)
            if request.state is not RequestState.RUNNING:
                assert not any(row.block_table for row in rows)
        assert {block: self.pool.num_references(block) for block in held} == held
        assert self.pool.num_used == len(held)
        assert self.pool.num_used + self.pool.num_free == self.num_blocks
        assert sum(self.pool.num_references(block) for block in range(self.num_blocks)) == held.total()

    def check_results(self, *, aborted: set[str]) -> None:
        for request in self.requests:
            if request.request_id in aborted:
                continue
            prompt_ids = request.token_ids[: request.num_prompt_tokens]
            if request.beam_search:
                assert request.beam_search.completions == beams_by_law(request)
            else:
                expected = greedy_by_law(prompt_ids, max_tokens=request.params.max_tokens, eos_ids=self.eos_ids)
                assert request.token_ids[request.num_prompt_tokens :] == expected


def run_to_end(trace: Trace) -> int:
    """Steps until every request is finished; returns their number, or fails when there is no end."""
    for num_steps in range(5000):
        if trace.is_done:
            return num_steps
        trace.step()
    raise AssertionError("the trace does not end")


def _is_decoding(request: Request) -> bool:
    return request.state is RequestState.RUNNING and request.beam_search is None and request.is_decoding
