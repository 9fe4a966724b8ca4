"""What `sampling.cpp` does, in torch: for other devices, and for machines without the kernels.

The same up to rounding: another token is drawn only where a threshold, or the draw itself, falls within the rounding
of sums and exponentials.
"""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:  # It imports this module.
    from flashgen_runtime.kernels.sampling import SamplingRow

# Token id, log probability if asked for, best tokens with theirs.
Chosen = tuple[int, float | None, list[tuple[int, float]]]


def sample(logits: torch.Tensor, rows: "Sequence[SamplingRow]") -> list[Chosen]:
    """As `sampling.sample`; logits: [R, V], float32, device."""
    raw = _usable(logits)
    changed = _with_first_allowed(_usable(_change(raw, rows)), rows)
    token_ids = changed.argmax(dim=-1)
    drawn = [index for index, row in enumerate(rows) if row.temperature != 0]
    if drawn:
        token_ids[drawn] = _draw(changed[drawn], [rows[index] for index in drawn])
    # Unless log probabilities are asked for, the step's one synchronisation with the device.
    return [
        _reported(raw[index], row, chosen)
        for index, (row, chosen) in enumerate(zip(rows, token_ids.tolist(), strict=True))
    ]


def beam_candidates(
    logits: torch.Tensor, rows: "Sequence[SamplingRow]", count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `sampling.beam_candidates`, on the CPU; logits: [R, V], float32, device."""
    raw = _usable(logits)
    log_sums = _log_sums(raw)
    changed = _usable(_change((raw.double() - log_sums).float(), rows))
    # Rows without changes are ordered by their logits: rounding to log probabilities may make them equal.
    is_changed = torch.tensor([[row.is_changed] for row in rows], device=logits.device)
    ordered = torch.where(is_changed, changed, raw).sort(dim=-1, descending=True, stable=True)
    log_probs = ordered.values[:, :count].double() - log_sums.masked_fill(is_changed, 0)
    return log_probs.float().cpu(), ordered.indices[:, :count].cpu()


def _usable(logits: torch.Tensor) -> torch.Tensor:
    return logits.nan_to_num(nan=-torch.inf, posinf=torch.finfo(torch.float32).max, neginf=-torch.inf)


def _change(logits: torch.Tensor, rows: "Sequence[SamplingRow]") -> torch.Tensor:
    """[R, V] → [R, V]: penalties, then biases, then masks; a new tensor if there are any."""
    if not any(row.is_changed for row in rows):
        return logits
    logits = logits.clone()
    _penalise(logits, rows)
    biased = [index for index, row in enumerate(rows) if row.biased_ids]
    if biased:
        places = _Places(logits, biased, [rows[index].biased_ids for index in biased])
        logits.view(-1)[places.flat] += places.take([rows[index].biases for index in biased], torch.float32)
    for row, values in zip(rows, logits, strict=True):
        if row.mask is not None:
            values.masked_fill_(~_allowed(row.mask, logits), -torch.inf)
    return logits


def _penalise(logits: torch.Tensor, rows: "Sequence[SamplingRow]") -> None:
    counted = [index for index, row in enumerate(rows) if row.counted_ids]
    if not counted:
        return
    places = _Places(logits, counted, [rows[index].counted_ids for index in counted])
    counts = places.take([rows[index].counts for index in counted], torch.int64)
    repetition = places.of_rows([rows[index].repetition_penalty for index in counted])
    frequency = places.of_rows([rows[index].frequency_penalty for index in counted])
    presence = places.of_rows([rows[index].presence_penalty for index in counted])
    found = logits.view(-1)[places.flat]
    found = torch.where(found < 0, found * repetition, found / repetition)
    logits.view(-1)[places.flat] = torch.where(counts > 0, found - frequency * counts - presence, found)


class _Places:
    """Where tokens of some rows lie in the flat logits; without those that a model with fewer logits lacks."""

    def __init__(self, logits: torch.Tensor, rows: Sequence[int], token_ids: "Sequence[array[int]]") -> None:
        vocab_size = logits.shape[-1]
        self._device = logits.device
        self._lengths = torch.tensor([len(ids) for ids in token_ids])
        ids = torch.cat([torch.frombuffer(each, dtype=torch.int64) for each in token_ids])
        self._has_logit = ids < vocab_size
        row_of = torch.tensor(rows).repeat_interleave(self._lengths)
        self.flat = (row_of * vocab_size + ids)[self._has_logit].to(logits.device)

    def take(self, values: "Sequence[array[Any]]", dtype: torch.dtype) -> torch.Tensor:
        """What lies beside the token ids."""
        together = torch.cat([torch.frombuffer(each, dtype=dtype) for each in values])
        return together[self._has_logit].to(self._device)

    def of_rows(self, values: Sequence[float]) -> torch.Tensor:
        """A row's value for each of its tokens, float32."""
        together = torch.tensor(values, dtype=torch.float32).repeat_interleave(self._lengths)
        return together[self._has_logit].to(self._device)


def _allowed(mask: bytearray, logits: torch.Tensor) -> torch.Tensor:
    """[V], bool: the mask's bits, on the device of the logits."""
    octets = torch.frombuffer(mask, dtype=torch.uint8).to(logits.device)
    bits = octets[:, None] >> torch.arange(8, device=logits.device, dtype=torch.uint8) & 1
    return bits.flatten()[: logits.shape[-1]].bool()


def _with_first_allowed(logits: torch.Tensor, rows: "Sequence[SamplingRow]") -> torch.Tensor:
    """Where no token is possible, the lowest that the mask allows becomes so; changes the logits."""
    is_impossible = logits.amax(dim=-1, keepdim=True) == -torch.inf
    first = torch.zeros_like(is_impossible, dtype=torch.int64)
    for index, row in enumerate(rows):
        if row.mask is not None:
            first[index] = _allowed(row.mask, logits).int().argmax()
    found = logits.gather(1, first)
    return logits.scatter_(1, first, found.masked_fill(is_impossible, 0))


def _draw(logits: torch.Tensor, rows: "Sequence[SamplingRow]") -> torch.Tensor:
    """[S, V] → [S]: the token whose share of the cumulative distribution holds the row's uniform number."""

    def column(values: Sequence[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    inverse = column([row.inverse_temperature for row in rows], torch.float32)
    # The largest logit becomes 0 first, so that a low temperature cannot overflow.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) * inverse
    scaled = _keep_top_k(logits, scaled, rows)
    scaled = _keep_nearest(scaled, torch.zeros_like(inverse), [row.top_p for row in rows])
    floors = column([row.log_min_p for row in rows], torch.float32)
    scaled = scaled.masked_fill(scaled < floors, -torch.inf)
    scaled = _keep_nearest(scaled, _mean(scaled), [row.typical_p for row in rows])
    cumulative = scaled.exp().cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    chosen = torch.searchsorted(cumulative, column([row.uniform for row in rows]) * total, right=True)
    # By rounding, the target may not be reached: then the last token that adds to the total.
    return torch.minimum(chosen, torch.searchsorted(cumulative, total)).squeeze(-1)


def _keep_top_k(logits: torch.Tensor, scaled: torch.Tensor, rows: "Sequence[SamplingRow]") -> torch.Tensor:
    vocab_size = logits.shape[-1]
    top_ks = [min(row.top_k or vocab_size, vocab_size) for row in rows]
    some = [index for index, top_k in enumerate(top_ks) if top_k < vocab_size]
    if not some:
        return scaled
    places = torch.tensor([top_ks[index] - 1 for index in some], device=logits.device)[:, None]
    best = logits[some].topk(max(top_ks[index] for index in some), dim=-1).values
    scaled[some] = scaled[some].masked_fill(logits[some] < best.gather(1, places), -torch.inf)
    return scaled


def _mean(scaled: torch.Tensor) -> torch.Tensor:
    """[S, V] → [S, 1]: the mean of each row under its own distribution; its information is the entropy."""
    weights = scaled.exp().double()
    return ((weights * scaled.clamp(min=-1e4)).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)).float()


def _keep_nearest(scaled: torch.Tensor, centers: torch.Tensor, shares: Sequence[float]) -> torch.Tensor:
    """Keeps the values nearest to the row's center, as few as have that share of the weight; 1 keeps all."""
    some = [index for index, share in enumerate(shares) if share < 1]
    if not some:
        return scaled
    distances = (scaled[some] - centers[some]).abs()
    ordered = distances.sort(dim=-1)
    weights = scaled[some].exp().double()
    cumulative = weights.gather(1, ordered.indices).cumsum(dim=-1)
    share = torch.tensor([shares[index] for index in some], dtype=torch.float64, device=scaled.device)
    targets = share[:, None] * weights.sum(dim=-1, keepdim=True)
    places = (cumulative < targets).sum(dim=-1, keepdim=True).clamp_(max=scaled.shape[-1] - 1)
    scaled[some] = scaled[some].masked_fill(distances > ordered.values.gather(1, places), -torch.inf)
    return scaled


def _log_sums(logits: torch.Tensor) -> torch.Tensor:
    """[R, V] → [R, 1], float64: log of the sum of exponentials; 0 where nothing is possible."""
    sums = logits.double().logsumexp(dim=-1, keepdim=True)
    return sums.masked_fill(sums == -torch.inf, 0)


def _reported(logits: torch.Tensor, row: "SamplingRow", token_id: int) -> Chosen:
    """The choice with the log probabilities that the row asks for; logits: [V], as they came."""
    if row.num_best is None:
        return token_id, None, []
    log_sum = _log_sums(logits[None])[0]
    best = logits.sort(descending=True, stable=True)
    log_probs = (best.values[: row.num_best].double() - log_sum).float().tolist()
    best_ids = best.indices[: row.num_best].tolist()
    return token_id, float((logits[token_id].double() - log_sum).float()), list(zip(best_ids, log_probs, strict=True))
