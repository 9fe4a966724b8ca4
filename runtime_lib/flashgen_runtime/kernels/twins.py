"""The kernels once more in plain torch, for CUDA devices and processors without a library; same results as the kernels.

Each takes and gives what its namesake in `operations` or `paged_attention` does, in the dtype of its input; sums run in
float32.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import gelu, silu

from flashgen_runtime.kernels.kv_layer import TILE_SIZE, KVLayer

# A group of decoding sequences gathers at most this many tokens of the cache at once.
MAX_GATHERED_TOKENS = 16384


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float, offset: float) -> torch.Tensor:
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled * (weight.float() + offset)).to(x.dtype)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, eps: float) -> torch.Tensor:
    normed = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
    return normed.to(x.dtype)


def activate(x: torch.Tensor, kind: str) -> torch.Tensor:
    match kind:
        case "silu":
            return silu(x)
        case "gelu":
            return gelu(x)
        case "gelu_tanh":
            return gelu(x, approximate="tanh")
        case _:
            return torch.relu(x)


def gated_activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return activate(gate, kind) * up


def embed(table: torch.Tensor, ids: torch.Tensor, *, scale: float) -> torch.Tensor:
    return table[ids].float() * scale


def rope_angles(positions: torch.Tensor, frequencies: torch.Tensor, *, factor: float) -> torch.Tensor:
    angles = positions.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * factor


def rope_and_store(
    qkv: torch.Tensor,
    angles: torch.Tensor,
    layer: KVLayer,
    slots: torch.Tensor,
    *,
    num_heads: int,
    query_norm: torch.Tensor | None,
    key_norm: torch.Tensor | None,
    eps: float,
    offset: float,
) -> None:
    sizes = [num_heads * layer.key_size, layer.num_kv_heads * layer.key_size, layer.num_kv_heads * layer.value_size]
    queries, keys, values = torch.split(qkv, sizes, dim=-1)
    for flat, norm in ((queries, query_norm), (keys, key_norm)):
        heads = flat.view(len(flat), -1, layer.key_size)
        if norm is not None:
            heads.copy_(rms_norm(heads, norm, eps=eps, offset=offset))
        _rotate(heads, angles[:, None])
    layer.write(keys.view(len(keys), -1, layer.key_size), values.view(len(values), -1, layer.value_size), slots)


def paged_attention(
    queries: torch.Tensor,
    layer: KVLayer,
    *,
    starts: Sequence[int],
    kv_lens: Sequence[int],
    block_tables: torch.Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    is_causal: bool,
    rounds: bool = False,
) -> torch.Tensor:
    """[T, H, value_size], float32; sequences with one token each are padded together, the others go one by one.

    `rounds`: queries and weights are rounded to bfloat16, as kernels do it where `rounds_factors` says so.
    """
    num_tokens, num_heads, _ = queries.shape
    out = torch.empty(num_tokens, num_heads, layer.value_size, device=queries.device)
    for sequences in _groups(starts, kv_lens):
        query_len = starts[sequences[0] + 1] - starts[sequences[0]]
        rows = torch.tensor([starts[i] for i in sequences], device=queries.device)[:, None]
        rows = rows + torch.arange(query_len, device=queries.device)
        ends = torch.tensor([kv_lens[i] for i in sequences], device=queries.device)[:, None]
        places = torch.arange(max(kv_lens[i] for i in sequences), device=queries.device)
        is_seen = _is_seen(places, ends, query_len=query_len, window=window, is_causal=is_causal)

        blocks = block_tables[sequences[0] : sequences[-1] + 1, places // layer.block_size]
        slots = (blocks * layer.block_size + places % layer.block_size).flatten()
        keys, values = (part.view(len(sequences), -1, *part.shape[1:]) for part in layer.read(slots))
        # What lies behind a sequence's end may be anything, and 0 * NaN is NaN.
        values = values.masked_fill((places >= ends)[..., None, None], 0.0)

        grouped = queries[rows].float().view(*rows.shape, layer.num_kv_heads, -1, layer.key_size) * scaling
        if rounds:
            grouped = grouped.bfloat16().float()
        scores = torch.einsum("bthgd,bkhd->bhgtk", grouped, keys)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~is_seen[:, None, None], -torch.inf)
        if rounds:
            scales = _value_scales(layer, slots).view(len(sequences), -1, layer.num_kv_heads)
            weights = _rounded_softmax(scores, sinks, scales.permute(0, 2, 1)[:, :, None, None])
        else:
            weights = _softmax(scores, sinks)
        out[rows] = torch.einsum("bhgtk,bkhv->bthgv", weights, values).flatten(2, 3)
    return out


def _rotate(heads: torch.Tensor, angles: torch.Tensor) -> None:
    """(a, b) of each pair becomes (a cos - b sin, b cos + a sin), in place; b stands half the angles behind a."""
    count = angles.shape[-1] // 2
    cosine, sine = angles[..., :count], angles[..., count:]
    a, b = heads[..., :count].clone(), heads[..., count : 2 * count].clone()
    heads[..., :count] = a * cosine - b * sine
    heads[..., count : 2 * count] = b * cosine + a * sine


def _groups(starts: Sequence[int], kv_lens: Sequence[int]) -> Iterator[range]:
    """Runs of sequences with one token each that stay below `MAX_GATHERED_TOKENS` when padded; all others alone."""
    first = 0
    while first < len(kv_lens):
        last, longest = first, 0
        while last < len(kv_lens) and starts[last + 1] - starts[last] == 1:
            longest = max(longest, kv_lens[last])
            if last > first and longest * (last + 1 - first) > MAX_GATHERED_TOKENS:
                break
            last += 1
        last = max(last, first + 1)
        yield range(first, last)
        first = last


def _is_seen(
    places: torch.Tensor, ends: torch.Tensor, *, query_len: int, window: int | None, is_causal: bool
) -> torch.Tensor:
    """[sequences, query_len, number of places]"""
    positions = ends - query_len + torch.arange(query_len, device=ends.device)
    distance = positions[..., None] - places
    is_seen = (places < ends)[:, None].expand_as(distance)
    if is_causal:
        is_seen = is_seen & (distance >= 0)
    if window is not None:
        is_seen = is_seen & (distance.abs() < window)
    return is_seen


def _value_scales(layer: KVLayer, slots: torch.Tensor) -> torch.Tensor:
    """[T, H_kv]: what stored values are multiplied with."""
    if layer.value_scales is None:
        return torch.ones(len(slots), layer.num_kv_heads, device=layer.device)
    return layer.value_scales[slots // TILE_SIZE, :, slots % TILE_SIZE]


def _rounded_softmax(scores: torch.Tensor, sinks: torch.Tensor | None, scales: torch.Tensor) -> torch.Tensor:
    """`_softmax` with weights that are rounded, times the scales, as they are when a tile of keys is added up.

    Until then the largest score is that of the tiles so far. What the weights sum to is not rounded.
    """
    num_keys = scores.shape[-1]
    tiles, scales = _in_tiles(scores, -torch.inf), _in_tiles(scales.nan_to_num(1), 1)
    highest = tiles.amax(-1).cummax(-1).values
    total = torch.zeros_like(highest[..., -1])
    if sinks is not None:
        sink = sinks.float().view(1, *scores.shape[1:3], 1)
        highest = highest.maximum(sink[..., None])
        total = total + (sink - highest[..., -1]).exp()
    base = torch.where(highest == -torch.inf, 0, highest)[..., None]
    weights, factors = (tiles - base).exp(), (base - base[..., -1:, :]).exp()
    total = total + (weights * factors).sum((-1, -2))
    rounded = (weights * scales).bfloat16().float() / scales
    summed: torch.Tensor = (rounded * factors).flatten(-2)
    return summed[..., :num_keys] / total[..., None]


def _in_tiles(x: torch.Tensor, value: float) -> torch.Tensor:
    """[..., keys] → [..., tiles, 32], filled up."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % TILE_SIZE), value=value)
    return padded.view(*x.shape[:-1], -1, TILE_SIZE)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Over keys; a sink is one more score of each head, whose share is left out."""
    if sinks is None:
        return scores.softmax(-1)
    num_sequences, num_kv_heads, group, num_tokens, _ = scores.shape
    sink = sinks.float().view(1, num_kv_heads, group, 1, 1).expand(num_sequences, -1, -1, num_tokens, 1)
    return torch.cat((scores, sink), dim=-1).softmax(-1)[..., :-1]
