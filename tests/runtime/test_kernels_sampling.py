"""Sampling: the kernels of every instruction set and their torch twin against transformers and against each other."""

import random
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from flashgen_runtime.kernels import library as kernels
from flashgen_runtime.kernels import sampling, sampling_twin
from flashgen_runtime.kernels.sampling import Choice, SamplingRow

# Of less than a vector, of whole vectors and blocks, of several blocks with a rest.
VOCAB_SIZES = [1, 2, 15, 16, 17, 50, 511, 512, 513, 1000, 5000, 20011]

SHARES = [1.0, 1.0, 0.999, 0.9, 0.5, 0.05]


@pytest.fixture(params=[*kernels.isas(), "torch"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every instruction set of this processor, one after the other, on two threads; then the twin."""
    if request.param == "torch":
        monkeypatch.setattr(sampling, "library", lambda: None)
        yield request.param
        return
    kernels.select_isa(request.param)
    kernels.set_num_threads(2)
    yield request.param
    kernels.select_isa(kernels.isas()[0])
    kernels.set_num_threads(torch.get_num_threads())


every_isa = pytest.mark.usefixtures("isa")


def random_row(rng: random.Random, vocab_size: int) -> SamplingRow:
    """A row with any mix of parameters, each switched off as often as not."""
    row = SamplingRow(
        temperature=rng.choice([0, 0.3, 1, 1, 2]),
        top_k=rng.choice([None, None, 1, 3, 50, 700, vocab_size]),
        top_p=rng.choice(SHARES),
        min_p=rng.choice([0, 0, 0.01, 0.3]),
        typical_p=rng.choice(SHARES),
        uniform=rng.random(),
        num_best=rng.choice([None, 0, 5, 20]),
    )
    if rng.random() < 0.4:
        # A model may have fewer logits than its tokenizer tokens.
        token_ids = rng.sample(range(vocab_size + 5), min(vocab_size, rng.randint(1, 300)))
        row.counted_ids = array("q", token_ids)
        row.counts = array("q", [rng.choice([0, 0, 1, 4]) for _ in token_ids])
        row.repetition_penalty = rng.choice([1.0, 0.7, 1.3])
        row.presence_penalty = rng.choice([0, 0.5, -1])
        row.frequency_penalty = rng.choice([0, 0.25, -0.5])
    if rng.random() < 0.3:
        token_ids = rng.sample(range(vocab_size), min(vocab_size, rng.randint(1, 20)))
        row.biased_ids = array("q", token_ids)
        row.biases = array("f", [rng.uniform(-5, 5) for _ in token_ids])
    if rng.random() < 0.3:
        row.mask = bytearray(rng.randbytes((vocab_size + 31) // 32 * 4))
    return row


def random_logits(rng: random.Random, num_rows: int, vocab_size: int) -> torch.Tensor:
    """Flat, peaked, with many equal values, impossible tokens and values that are no numbers."""
    logits = torch.randn(num_rows, vocab_size) * rng.choice([0.1, 1, 3, 8])
    if rng.random() < 0.3:
        logits = logits.round(decimals=1)
    for value in (-torch.inf, torch.inf, torch.nan, 1e30, -1e30):
        if rng.random() < 0.1:
            logits[torch.rand(num_rows, vocab_size) < 0.2] = value
    return logits


def assert_same(actual: Choice, expected: Choice) -> None:
    assert actual.token_id == expected.token_id
    assert (actual.logprob is None) == (expected.logprob is None)
    assert (actual.logprob or 0) == pytest.approx(expected.logprob or 0, rel=1e-5, abs=1e-5)
    assert [token_id for token_id, _ in actual.best] == [token_id for token_id, _ in expected.best]
    log_probs = [logprob for _, logprob in expected.best]
    assert [logprob for _, logprob in actual.best] == pytest.approx(log_probs, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_kernels_equal_their_twin(isa: str, seed: int) -> None:
    """Random mixes of parameters in random batches give the same tokens and log probabilities as torch."""
    if isa == "torch":
        pytest.skip("this is the twin")
    torch.manual_seed(seed)
    rng = random.Random(seed)

    for _ in range(10):
        vocab_size, num_rows = rng.choice(VOCAB_SIZES), rng.randint(1, 6)
        logits = random_logits(rng, num_rows, vocab_size)
        rows = [random_row(rng, vocab_size) for _ in range(num_rows)]

        choices = sampling.sample(logits, rows)
        candidates = sampling.beam_candidates(logits, rows, 7)

        for choice, expected in zip(choices, sampling_twin.sample(logits, rows), strict=True):
            assert_same(choice, Choice(*expected))
        log_probs, token_ids = sampling_twin.beam_candidates(logits, rows, 7)
        torch.testing.assert_close(candidates.log_probs, log_probs, rtol=1e-5, atol=1e-5)
        assert torch.equal(candidates.token_ids, token_ids)


def rows_hard_to_estimate(vocab_size: int) -> torch.Tensor:
    """A sample of these rows says little: equal values, few values, an order, all the weight in one place."""
    torch.manual_seed(0)
    normal = torch.randn(vocab_size)
    one_block = torch.where(torch.arange(vocab_size) // 512 == 3, normal, normal - 9)
    repeated = normal[: (vocab_size + 31) // 32].repeat_interleave(32)[:vocab_size]
    return torch.stack(
        [normal * 0, (normal > 1).float(), normal.round(), normal.sort().values, repeated, one_block, normal * 40]
    )


@every_isa
@pytest.mark.parametrize("filters", [{"top_p": 0.9}, {"top_p": 0.5, "min_p": 0.2}, {"typical_p": 0.7}, {"top_p": 1e-9}])
def test_filters_of_rows_that_are_hard_to_estimate(filters: dict[str, float]) -> None:
    """The answer is exact where the sample that it is looked for with misleads."""
    logits = rows_hard_to_estimate(20011)

    for uniform in (0.0, 0.4, 1 - 2**-40):
        rows = [SamplingRow(uniform=uniform, **filters)] * len(logits)
        drawn = [choice.token_id for choice in sampling.sample(logits, rows)]
        assert drawn == [token_id for token_id, *_ in sampling_twin.sample(logits, rows)]


@pytest.mark.skipif(len(kernels.isas()) < 2, reason="fewer than two instruction sets to compare")
def test_instruction_sets_give_the_same_bits() -> None:
    """Another processor draws the same tokens with the same log probabilities, bit for bit."""
    torch.manual_seed(0)
    rng = random.Random(0)
    logits = random_logits(rng, 40, 5000)
    rows = [random_row(rng, 5000) for _ in range(40)]

    results = []
    for name in kernels.isas():
        kernels.select_isa(name)
        results.append(sampling.sample(logits, rows))
    kernels.select_isa(kernels.isas()[0])

    assert all(result == results[0] for result in results)


@every_isa
def test_row_is_the_same_alone_and_in_any_company() -> None:
    """What a row gives depends on nothing but the row, to the bit; the logits are left as they are."""
    torch.manual_seed(1)
    rng = random.Random(1)
    logits = random_logits(rng, 24, 1000)
    before = logits.clone()
    rows = [random_row(rng, 1000) for _ in range(24)]

    together = sampling.sample(logits, rows)

    assert torch.equal(logits, before)
    assert together == [sampling.sample(logits[index : index + 1], [rows[index]])[0] for index in range(24)]
    assert together == sampling.sample(logits.flip(0), rows[::-1])[::-1]


def processed_by_transformers(logits: torch.Tensor, row: SamplingRow, token_ids: list[int]) -> torch.Tensor:
    """The scores that transformers' `generate` draws from, in its order of processors; logits: [V]."""
    processors: list[Any] = []
    if row.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(row.repetition_penalty))
    processors.append(TemperatureLogitsWarper(float(row.temperature)))
    if row.top_k is not None:
        processors.append(TopKLogitsWarper(row.top_k))
    if row.top_p < 1:
        processors.append(TopPLogitsWarper(row.top_p))
    if row.min_p > 0:
        processors.append(MinPLogitsWarper(row.min_p))
    if row.typical_p < 1:
        processors.append(TypicalLogitsWarper(row.typical_p))
    scores = LogitsProcessorList(processors)(torch.tensor([token_ids]), logits[None])
    return scores[0]


@every_isa
@pytest.mark.parametrize("seed", range(5))
def test_filters_are_those_of_transformers(seed: int) -> None:
    """In the middle of each kept token's share of the distribution that token is drawn, so exactly those are kept."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    for _ in range(10):
        logits = torch.randn(60) * rng.choice([0.5, 2, 5])
        token_ids = rng.sample(range(60), 10)
        row = random_row(rng, 60)
        parameters = {
            "temperature": row.temperature or 1,
            "top_k": rng.choice([None, 5, 30]),
            "top_p": row.top_p,
            "min_p": row.min_p,
            "typical_p": row.typical_p,
            "repetition_penalty": row.repetition_penalty,
            "counted_ids": array("q", token_ids),
            "counts": array("q", bytes(8 * len(token_ids))),
        }
        scores = processed_by_transformers(logits, SamplingRow(**parameters), token_ids)
        probabilities = scores.double().softmax(dim=-1)
        kept = (probabilities > 1e-9).nonzero().flatten()
        middles = (probabilities.cumsum(dim=-1) - probabilities / 2)[kept]

        drawn = sampling.sample(
            logits.repeat(len(kept), 1), [SamplingRow(**parameters, uniform=middle) for middle in middles.tolist()]
        )

        assert [choice.token_id for choice in drawn] == kept.tolist()


@every_isa
def test_penalties_biases_and_mask_in_order() -> None:
    """The repetition penalty sees all tokens, the others the completion's; then biases, then the mask."""
    log_probs = torch.tensor([2.0, -1.0, 3.0, 1.0, 0.5, 4.0]).log_softmax(dim=-1)
    row = SamplingRow(
        counted_ids=array("q", [0, 1, 2]),
        counts=array("q", [0, 1, 3]),
        repetition_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        biased_ids=array("q", [2, 3]),
        biases=array("f", [10.0, -3.0]),
        mask=bytearray([0b011111, 0, 0, 0]),
    )

    candidates = sampling.beam_candidates(log_probs[None] + 1, [row], 6)

    factors = torch.tensor([2, 2, 2, 1, 1, 1])
    added = torch.tensor([0, -0.5 - 0.25, -3 * 0.5 - 0.25 + 10, -3, 0, -torch.inf])
    expected = (log_probs * factors + added).sort(descending=True)
    torch.testing.assert_close(candidates.log_probs[0], expected.values)
    assert torch.equal(candidates.token_ids[0], expected.indices)


@every_isa
@pytest.mark.parametrize("temperature", [0, 1e-30, 1.0, 1e30])
def test_a_mask_that_leaves_one_token(temperature: float) -> None:
    """The one token that is allowed is taken, however improbable, even if its own logit is impossible or no number."""
    for logit in (-5.0, -1e30, -torch.inf, torch.nan, 1e30):
        logits = torch.zeros(1, 100)
        logits[0, 67] = logit
        mask = bytearray(16)
        mask[8] = 0b1000

        [choice] = sampling.sample(logits, [SamplingRow(temperature=temperature, uniform=0.9, top_p=0.5, mask=mask)])

        assert choice.token_id == 67


@every_isa
@pytest.mark.parametrize("temperature", [0, 0.5])
def test_numbers_that_are_none(temperature: float) -> None:
    """NaN is never drawn, infinity is before all numbers; with nothing possible at all the first token is given."""
    rows = [SamplingRow(temperature=temperature, uniform=0.99, top_p=0.9)] * 4
    logits = torch.zeros(4, 40)
    logits[0] = torch.nan
    logits[0, 7] = -80.0
    logits[1, 9] = torch.inf
    logits[2] = -torch.inf
    logits[3] = torch.nan

    choices = sampling.sample(logits, rows)

    assert [choice.token_id for choice in choices] == [7, 9, 0, 0]


@every_isa
def test_huge_logits() -> None:
    """Values near the ends of float32 neither overflow nor give anything but the largest."""
    logits = torch.tensor([[1e30, -1e30, 3e38, -3e38, 0.0]])

    for row in (SamplingRow(), SamplingRow(temperature=1e-30), SamplingRow(top_k=2, top_p=0.9, typical_p=0.5)):
        assert sampling.sample(logits, [row])[0].token_id == 2


@every_isa
def test_rows_may_lie_apart() -> None:
    """The rows of a wider tensor are read where they are."""
    torch.manual_seed(0)
    wide = torch.randn(6, 300)

    choices = sampling.sample(wide[::2, :200], [SamplingRow(temperature=0)] * 3)

    assert [choice.token_id for choice in choices] == wide[::2, :200].argmax(dim=-1).tolist()
