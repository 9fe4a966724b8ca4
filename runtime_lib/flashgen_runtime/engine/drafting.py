"""A small model that guesses for a large one: it runs ahead by a few tokens on a KV cache of its own.

It samples with the request's own parameters, seed and random numbers, so that wherever both models agree about a
token's place in the distribution they choose the same token, and a sampled text is guessed about as well as a greedy
one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from flashgen_runtime.engine.batch import build_batch
from flashgen_runtime.engine.block_pool import BlockPool
from flashgen_runtime.engine.block_tables import BlockTables
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampler import Sampler
from flashgen_runtime.engine.scheduler import Chunk


@dataclass(slots=True)
class _Draft:
    """One request as the small model has it."""

    # Its tokens are those of the text, then what was guessed; what is computed is a beginning of them.
    request: Request

    # Tokens of the text that it was given.
    num_given: int = 0


class DraftProposer:
    """Implements `engine.speculative.Proposer` with a model that has the same tokens as the one that it guesses for.

    A request whose text it has not read yet, or not up to what its guesses can tell, gets no guess until it has caught
    up, at most `max_num_batched_tokens` tokens a step.

    Args:
        model: owned from now on; its KV cache is made here.
        vocab_size: of the model that it guesses for; its own may be padded otherwise.
        num_blocks, block_size: of the KV cache.
        max_num_batched_tokens: of one forward pass.
        max_context: longest text that it reads.
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        vocab_size: int,
        num_blocks: int,
        block_size: int,
        max_num_batched_tokens: int,
        max_context: int,
    ) -> None:
        model.allocate_cache(num_blocks, block_size)
        self._model = model
        self._vocab_size = vocab_size
        self._block_size = block_size
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_context = max_context
        self._tables = BlockTables(BlockPool(num_blocks), block_size=block_size, can_share=False, forget=model.forget)

        # By the requests that they guess for.
        self._drafts: dict[Request, _Draft] = {}

    @property
    def num_free_blocks(self) -> int:
        return self._tables.num_free

    def propose(self, wishes: Mapping[Request, int]) -> dict[Request, list[int]]:
        counts = self._ready(wishes)
        drafts = {request: self._drafts[request].request for request in counts}
        # Not kept: it counts the tokens of texts that only grow, and guesses are taken back.
        sampler = Sampler()
        for position in range(max(counts.values(), default=0)):
            longer = [drafts[request] for request, count in counts.items() if count > position]
            rows, in_order = self._forward([Chunk(draft, draft.num_uncomputed_tokens) for draft in longer])
            for draft, token in zip(in_order, sampler.sample(rows, in_order), strict=True):
                draft.token_ids.append(token.token_id)
        return {request: draft.token_ids[len(request.token_ids) :] for request, draft in drafts.items()}

    def forget(self, request: Request) -> None:
        if draft := self._drafts.pop(request, None):
            self._tables.release(draft.request)

    def close(self) -> None:
        """Gives back weights and cache; there are no calls afterwards."""
        self._model.close()

    def _ready(self, wishes: Mapping[Request, int]) -> dict[Request, int]:
        """How many tokens can be guessed for each request; reads on in those that are behind."""
        counts: dict[Request, int] = {}
        behind: list[Chunk] = []
        budget = self._max_num_batched_tokens
        for request, wish in wishes.items():
            count = min(wish, self._max_context - len(request.token_ids))
            draft = self._brought_to(request)
            if count <= 0 or draft is None or not self._make_room(draft, len(request.token_ids) + count, keep=wishes):
                continue
            # Behind right guesses two tokens are new, the last guess and what followed it.
            if draft.num_uncomputed_tokens <= 2:
                counts[request] = count
            elif budget > 0:
                behind.append(Chunk(draft, min(draft.num_uncomputed_tokens - 1, budget)))
                budget -= behind[-1].num_tokens
        if behind:
            self._forward(behind)
        return counts

    def _brought_to(self, request: Request) -> Request | None:
        """The draft of a request with the request's tokens behind right guesses; `None` if it does not know them."""
        if request not in self._drafts:
            self._drafts[request] = _Draft(_copy_without_tokens(request))
        kept = self._drafts[request]
        draft, token_ids = kept.request, request.token_ids
        num_equal = kept.num_given
        while (
            num_equal < min(len(draft.token_ids), len(token_ids)) and draft.token_ids[num_equal] == token_ids[num_equal]
        ):
            num_equal += 1
        # Where the larger model's vocabulary is padded further.
        if any(token_id >= self._model.vocab_size for token_id in token_ids[num_equal:]):
            return None
        draft.token_ids[num_equal:] = token_ids[num_equal:]
        draft.num_computed_tokens = min(draft.num_computed_tokens, num_equal, len(token_ids) - 1)
        kept.num_given = len(token_ids)
        return draft

    def _make_room(self, draft: Request, num_tokens: int, *, keep: Mapping[Request, int]) -> bool:
        """Gives a draft blocks for so many tokens, if need be those of requests that want no guess now."""
        if self._tables.extend(draft, num_tokens):
            return True
        for request in [request for request in self._drafts if request not in keep]:
            self.forget(request)
        return self._tables.extend(draft, num_tokens)

    def _forward(self, chunks: list[Chunk]) -> tuple[torch.Tensor, list[Request]]:
        """Logits of the tokens that the larger model has, and whose they are."""
        batch = build_batch(chunks, block_size=self._block_size, device=self._model.device)
        drafts = [chunk.request for chunk in batch.sampled_chunks]
        logits = self._model.forward(batch)
        for draft, num_tokens in chunks:
            self._tables.advance(draft, num_tokens)
        return logits[:, : self._vocab_size], drafts


def _copy_without_tokens(request: Request) -> Request:
    return Request(
        request_id=request.request_id,
        params=replace(request.params, logprobs=None),
        token_ids=[],
        num_prompt_tokens=request.num_prompt_tokens,
        seed=request.seed,
        eos_ids=request.eos_ids,
    )
