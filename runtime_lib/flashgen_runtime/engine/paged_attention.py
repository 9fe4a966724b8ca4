"""Causal attention over the paged KV cache in plain torch: gathers blocks, then lets torch's fused kernel attend.

Runs on every device and with blocks of any size: what our kernels are compared with, and what runs where they do not.
Sequences with one new token are padded together in groups of similar length; a chunk of a prompt goes alone. Indices
and masks are the same for every layer with the same window, so they are made once per step and window.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

from flashgen_runtime.engine.batch import Batch
from flashgen_runtime.engine.kv_cache import KVCache

# A group of decoding sequences may hold this much padding anyway: less work than one more call.
FREE_PADDING_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences `first` : `last` of the batch, one new token each, padded to one length."""

    first: int
    last: int

    # [last - first, N]
    blocks: torch.Tensor

    # [last - first, 1, 1, N * block_size]: 0 where a key is seen, else -inf.
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens `first` : `last` of the batch, all of one sequence."""

    first: int
    last: int

    # [1, N]; `None` when the chunk sees nothing but itself: then nothing needs to be read back.
    blocks: torch.Tensor | None

    # [last - first, number of keys]; `None` when plain causal.
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """An `AttentionContext`: one batch and the cache it lives in."""

    cache: KVCache
    batch: Batch
    dtype: torch.dtype
    _decode_groups: dict[int | None, list[DecodeGroup]] = field(default_factory=dict)
    _prefill_chunks: dict[int | None, list[PrefillChunk]] = field(default_factory=dict)

    def attend(
        self,
        layer: int | None,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert layer is not None, "the runner refuses models that do not number their layers"
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        self.cache.write(layer, keys, values, slots=self.batch.slot_mapping)
        if sliding_window not in self._decode_groups:
            self._plan(sliding_window, device=query.device)
        scores = Scores(scaling, softcap, sinks)
        parts = [self._decode(layer, group, query, scores) for group in self._decode_groups[sliding_window]] + [
            self._prefill(layer, chunk, query, key, value, scores) for chunk in self._prefill_chunks[sliding_window]
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)

    def _plan(self, window: int | None, *, device: torch.device) -> None:
        batch = self.batch
        self._decode_groups[window] = [
            _decode_group(batch, first, last, window=window, dtype=self.dtype)
            for first, last in _groups(batch.kv_lens_host[: batch.num_decodes], block_size=batch.block_size)
        ]
        self._prefill_chunks[window] = [
            _prefill_chunk(batch, sequence, window=window, dtype=self.dtype, device=device)
            for sequence in range(batch.num_decodes, len(batch.chunks))
        ]

    def _decode(self, layer: int, group: DecodeGroup, query: torch.Tensor, scores: "Scores") -> torch.Tensor:
        """[number of sequences, H, D]"""
        keys, values = self.cache.read(layer, group.blocks)
        queries = query[0, :, group.first : group.last].transpose(0, 1).unsqueeze(2)
        return scores.attend(queries, keys, values, group.mask).squeeze(2)

    def _prefill(
        self,
        layer: int,
        chunk: PrefillChunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scores: "Scores",
    ) -> torch.Tensor:
        """[last - first, H, D]"""
        if chunk.blocks is None:
            keys, values = key[:, :, chunk.first : chunk.last], value[:, :, chunk.first : chunk.last]
        else:
            keys, values = self.cache.read(layer, chunk.blocks)
        attended = scores.attend(query[:, :, chunk.first : chunk.last], keys, values, chunk.mask)
        return attended[0].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a layer does to its scores before the softmax."""

    scaling: float
    softcap: float | None
    sinks: torch.Tensor | None

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """[B, H, n, D]

        Args:
            queries: [B, H, n, D]
            keys, values: [B, H_kv, L, D]
            mask: added to the scores, broadcasts to [B, 1, n, L]; `None`: causal, n = L.
        """
        num_kv_heads = keys.shape[1]
        if self.softcap is None and self.sinks is None:
            if queries.shape[2] == 1:
                # The heads that share keys stand as rows of one query, so that nothing is copied.
                rows = queries.view(len(queries), num_kv_heads, -1, queries.shape[3])
                attended = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=self.scaling)
                return attended.flatten(1, 2).unsqueeze(2)
            return scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=self.scaling,
                enable_gqa=queries.shape[1] != num_kv_heads,
            )
        # Torch's kernel has neither softcap nor sinks.
        group_size = queries.shape[1] // num_kv_heads
        keys, values = (states.repeat_interleave(group_size, dim=1) for states in (keys, values))
        scores = queries @ keys.transpose(2, 3) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if mask is None:
            is_seen = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril_()
            mask = _additive(is_seen, scores.dtype)
        scores = scores + mask
        if self.sinks is not None:
            sinks = self.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, sinks), dim=3)
        weights = scores.softmax(dim=3, dtype=torch.float32)[..., : keys.shape[2]]
        return weights.to(values.dtype) @ values


def _groups(kv_lens: list[int], *, block_size: int) -> Iterator[tuple[int, int]]:
    """Cuts sequences, ordered by length, into runs in which at most half of what is read is padding."""
    first, num_real = 0, 0
    for index, kv_len in enumerate(kv_lens):
        num_blocks = -(-kv_len // block_size)
        num_padded = num_blocks * (index + 1 - first) - num_real - num_blocks
        if num_padded > max(num_real + num_blocks, FREE_PADDING_BLOCKS):
            yield first, index
            first, num_real = index, 0
        num_real += num_blocks
    if kv_lens:
        yield first, len(kv_lens)


def _decode_group(batch: Batch, first: int, last: int, *, window: int | None, dtype: torch.dtype) -> DecodeGroup:
    block_size = batch.block_size
    kv_lens = batch.kv_lens[first:last, None]
    first_seen = torch.zeros_like(kv_lens) if window is None else (kv_lens - window).clamp(min=0)
    first_block = first_seen // block_size
    num_blocks = max(
        -(-kv_len // block_size) - _first_block(kv_len - 1, window, block_size=block_size)
        for kv_len in batch.kv_lens_host[first:last]
    )
    columns = first_block + torch.arange(num_blocks, device=kv_lens.device)
    blocks = batch.block_tables[first:last].gather(1, columns.clamp(max=batch.block_tables.shape[1] - 1))
    positions = first_block * block_size + torch.arange(num_blocks * block_size, device=kv_lens.device)
    mask = _additive((positions >= first_seen) & (positions < kv_lens), dtype)
    return DecodeGroup(first, last, blocks, mask[:, None, None])


def _prefill_chunk(
    batch: Batch, sequence: int, *, window: int | None, dtype: torch.dtype, device: torch.device
) -> PrefillChunk:
    first, last = batch.cu_seqlens[sequence : sequence + 2]
    kv_len, block_size = batch.kv_lens_host[sequence], batch.block_size
    start = kv_len - (last - first)
    if start == 0 and (window is None or kv_len <= window):
        return PrefillChunk(first, last, blocks=None, mask=None)
    if start == 0:
        blocks, key_start, num_keys = None, 0, kv_len
    else:
        first_block = _first_block(start, window, block_size=block_size)
        blocks = batch.block_tables[sequence : sequence + 1, first_block : -(-kv_len // block_size)]
        key_start, num_keys = first_block * block_size, blocks.shape[1] * block_size
    queries = torch.arange(start, kv_len, device=device)[:, None]
    keys = torch.arange(key_start, key_start + num_keys, device=device)
    is_seen = keys <= queries
    if window is not None:
        is_seen &= keys > queries - window
    return PrefillChunk(first, last, blocks, _additive(is_seen, dtype))


def _first_block(position: int, window: int | None, *, block_size: int) -> int:
    """The block of the first token that the token at `position` sees."""
    return 0 if window is None else max(0, position + 1 - window) // block_size


def _additive(is_seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as torch's kernel wants it; it would convert a boolean one anew in every layer."""
    return torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device).masked_fill_(~is_seen, -torch.inf)
