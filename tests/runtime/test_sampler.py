"""The sampler's laws: what each parameter keeps, and that a seed's text depends on nothing else."""

from collections import Counter
from typing import Any

import pytest
import torch

from flashgen_runtime.engine.base import EngineRequest
from flashgen_runtime.engine.request import Request, RequestState
from flashgen_runtime.engine.sampler import Sampler, choice_seed, uniform_of
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.token_counts import TokenCounts
from flashgen_runtime.kernels import library, sampling
from tests.runtime_models import kv_cache_bytes, random_prompts, run_to_end, sizes, tiny_engine, tiny_module

DRAWS = 2000
LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.5, 0.0, 3.0, -torch.inf, 1.0])


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels, and as on a machine without them."""
    if request.param == "torch":
        monkeypatch.setattr(sampling, "library", lambda: None)
    elif library.library() is None:
        pytest.skip("no kernels for this processor")


def row(*, seed: int = 0, token_ids: list[int] | None = None, num_completion_tokens: int = 0, **params: Any) -> Request:
    token_ids = [0] * (1 + num_completion_tokens) if token_ids is None else token_ids
    return Request(
        request_id="row",
        params=SamplingParams(max_tokens=100, **params),
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids) - num_completion_tokens,
        seed=seed,
        eos_ids=frozenset(),
    )


def sample(logits: torch.Tensor, rows: list[Request]) -> list[int]:
    return [token.token_id for token in Sampler().sample(logits, rows)]


def frequencies(**params: float) -> torch.Tensor:
    """How often each token is drawn by as many seeds."""
    rows = [row(seed=seed, **params) for seed in range(DRAWS)]
    drawn = sample(LOGITS.repeat(DRAWS, 1), rows)
    return torch.bincount(torch.tensor(drawn), minlength=len(LOGITS)) / DRAWS


def test_greedy_rows_take_the_largest() -> None:
    """Temperature 0 is the argmax, also beside rows that draw."""
    rows = [row(temperature=0), row(temperature=1, top_k=1), row(temperature=0, top_k=3)]

    assert sample(LOGITS.repeat(3, 1), rows) == [5, 5, 5]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature: float) -> None:
    """Tokens come as often as the softmax of the scaled logits says; an impossible one never."""
    found = frequencies(temperature=temperature)

    expected = (LOGITS / temperature).softmax(dim=-1)
    torch.testing.assert_close(found, expected, atol=0.04, rtol=0)
    assert found[6] == 0
    possible = expected > 0
    chi_square = DRAWS * ((found - expected)[possible] ** 2 / expected[possible]).sum()
    # The 99.9 % quantile of the distribution with 6 degrees of freedom.
    assert chi_square < 22.5


def test_tiny_temperature_is_greedy() -> None:
    """A temperature near 0 neither overflows nor gives anything but the largest."""
    assert frequencies(temperature=1e-30)[5] == 1


@pytest.mark.parametrize("top_k", [1, 3, 8, 100])
def test_top_k(top_k: int) -> None:
    """Only the k most probable tokens are drawn, in their proportions."""
    kept = LOGITS.topk(min(top_k, 7)).indices
    expected = torch.full_like(LOGITS, -torch.inf).scatter(0, kept, LOGITS[kept]).softmax(dim=-1)

    torch.testing.assert_close(frequencies(temperature=1, top_k=top_k), expected, atol=0.04, rtol=0)


@pytest.mark.parametrize(("top_p", "num_kept"), [(0.01, 1), (0.55, 2), (0.8, 3), (0.95, 5), (1.0, 7)])
def test_top_p(top_p: float, num_kept: int) -> None:
    """The smallest set of tokens is kept whose probabilities reach p."""
    probabilities = LOGITS.softmax(dim=-1).sort(descending=True).values
    assert probabilities[:num_kept].sum() >= top_p - 1e-6
    assert num_kept == 1 or probabilities[: num_kept - 1].sum() < top_p

    found = frequencies(temperature=1, top_p=top_p)

    assert set(found.nonzero().squeeze(-1).tolist()) == set(LOGITS.topk(num_kept).indices.tolist())


def test_top_p_counts_what_top_k_left() -> None:
    """Both together: p of the k tokens' own distribution, as in transformers."""
    found = frequencies(temperature=1, top_k=2, top_p=0.7)

    assert found[5] == 1


def test_min_p() -> None:
    """Tokens with less than that share of the best one's probability are never drawn."""
    found = frequencies(temperature=1, min_p=0.2)

    assert set(found.nonzero().squeeze(-1).tolist()) == {1, 3, 5}


def test_typical_p() -> None:
    """Tokens whose information is nearest to the entropy are kept: the best may be too predictable."""
    found = frequencies(temperature=1, typical_p=0.15)

    assert found[1] == 1


def test_equal_logits_are_kept_together() -> None:
    """Where a border falls between equal values all of them stay, so no order of sorting shows."""
    flat = torch.zeros(400, 10)

    for params in ({"top_k": 2}, {"top_p": 0.15}, {"typical_p": 0.15}):
        drawn = sample(flat, [row(seed=seed, temperature=1, **params) for seed in range(400)])

        assert set(drawn) == set(range(10))


def test_repetition_penalty_sees_prompt_and_completion() -> None:
    """Tokens that occurred lose, wherever they did; the others only if the completion has them."""
    logits = torch.tensor([[1.0, 1.1, 1.2, 1.3]])
    history = {"token_ids": [3, 3, 2], "num_completion_tokens": 1, "temperature": 0}

    assert sample(logits, [row(**history, repetition_penalty=2.0)]) == [1]
    assert sample(logits, [row(**history, presence_penalty=2.0)]) == [3]
    assert sample(logits, [row(**history, frequency_penalty=-0.2)]) == [2]


def test_penalties_follow_the_completion() -> None:
    """From step to step the counts grow with the request: greedy decoding goes round."""
    sampler, request = Sampler(), row(temperature=0, presence_penalty=0.5, frequency_penalty=0.5)

    for _ in range(9):
        [token] = sampler.sample(torch.tensor([[0.0, 1.0, 1.4, 0.7]]), [request])
        request.token_ids.append(token.token_id)

    assert request.token_ids[1:] == [2, 1, 3, 2, 0, 1, 2, 3, 1]


def test_logit_bias() -> None:
    """A bias is added to the token's logit; -100 forbids, 100 forces."""
    assert sample(LOGITS[None], [row(temperature=0, logit_bias=((5, -100.0), (3, 0.6)))]) == [3]
    assert sample(LOGITS[None], [row(temperature=2, logit_bias=((4, 100.0),))]) == [4]


def test_counts_grow_with_the_request() -> None:
    """After any number of tokens the counts are those of counting anew, prompt tokens at 0."""
    request = row(token_ids=[7, 8, 7, 9], num_completion_tokens=1)
    counts = TokenCounts(request, with_prompt=True)
    without_prompt = TokenCounts(request, with_prompt=False)

    for new in ([], [8], [8, 1, 1], [9]):
        request.token_ids += new
        counts.update()
        without_prompt.update()

        completion = Counter(request.token_ids[3:])
        assert dict(zip(counts.token_ids, counts.counts, strict=True)) == {7: 0, 8: 0} | dict(completion)
        assert dict(zip(without_prompt.token_ids, without_prompt.counts, strict=True)) == completion


def test_finished_requests_are_forgotten() -> None:
    """Requests with penalties that come and go leave nothing behind that grows."""
    sampler = Sampler()

    for _ in range(300):
        request = row(temperature=0, presence_penalty=0.5)
        sampler.sample(LOGITS[None], [request])
        request.state = RequestState.FINISHED

    assert len(sampler._changes) < 100


def test_beam_candidates_are_the_best_log_probabilities() -> None:
    """The best tokens of each beam, best first; penalties change log probabilities, filters do nothing."""
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    beams = [row(num_beams=2, temperature=0), row(num_beams=2, top_k=1, token_ids=[2], repetition_penalty=2.0)]

    log_probs, token_ids = Sampler().beam_candidates(logits, beams, 3)

    expected = logits.log_softmax(dim=-1)
    expected[1, 2] *= 2
    torch.testing.assert_close(log_probs, expected.topk(3).values)
    assert torch.equal(token_ids, expected.topk(3).indices)
    assert Sampler().beam_candidates(logits, beams, 20)[0].shape == (2, 8)


def test_uniform_numbers_are_uniform() -> None:
    """Over seeds and over tokens: ten equal parts are hit about equally, and all values are within [0, 1)."""
    by_seed = torch.tensor([uniform_of(seed, 0) for seed in range(5000)])
    by_token = torch.tensor([uniform_of(3, index) for index in range(5000)])
    by_choice = torch.tensor([uniform_of(choice_seed(3, index), 0) for index in range(5000)])

    for numbers in (by_seed, by_token, by_choice):
        assert 0 <= numbers.min() <= numbers.max() < 1
        assert (torch.histc(numbers, bins=10, min=0, max=1) - 500).abs().max() < 100
    assert uniform_of(1, 2) != uniform_of(2, 1)


def test_the_first_choice_is_what_the_request_would_get_alone() -> None:
    """Asking for more choices does not change the first; the others differ from it and from other seeds."""
    assert choice_seed(5, 0) == 5
    assert len({choice_seed(seed, index) for seed in range(20) for index in range(20)}) == 400


def test_row_is_the_same_alone_and_in_any_company() -> None:
    """What a row draws does not depend on the other rows' parameters."""
    torch.manual_seed(0)
    logits = torch.randn(40, 50).round(decimals=1)
    rows = [
        row(seed=seed, num_completion_tokens=seed % 7, temperature=1 + seed % 2, top_p=0.5 + seed / 80, top_k=1 + seed)
        for seed in range(20)
    ] + [row(seed=seed, temperature=seed % 3, frequency_penalty=seed / 20) for seed in range(20)]

    together = sample(logits, rows)

    assert together == [sample(logits[index : index + 1], [rows[index]])[0] for index in range(40)]


def sampled_request(request_id: str, prompt: list[int], *, seed: int | None) -> EngineRequest:
    params = SamplingParams(max_tokens=16, temperature=1, top_p=0.9, repetition_penalty=1.1, seed=seed)
    return EngineRequest(request_id, prompt, params)


def test_seed_gives_the_same_text_alone_in_a_batch_and_after_preemption() -> None:
    """A seeded request's text does not depend on what runs beside it."""
    prompts = random_prompts(8, longest=12)
    roomy = tiny_engine(tiny_module("llama"))
    alone = []
    for prompt in prompts:
        roomy.add_request(sampled_request("alone", prompt, seed=-5))
        alone.append(run_to_end(roomy)["alone"])

    module = tiny_module("llama")
    limits = sizes(block_size=4, kv_cache_bytes=kv_cache_bytes(module, num_tokens=56))
    tiny = tiny_engine(module, limits=limits)
    for index, prompt in enumerate(prompts):
        tiny.add_request(sampled_request(str(index), prompt, seed=-5))
    together = run_to_end(tiny)

    assert [together[str(index)] for index in range(8)] == alone
    assert tiny.stats.preemptions > 0


def test_without_a_seed_texts_differ() -> None:
    """A request without a seed draws one, each time another."""
    engine = tiny_engine(tiny_module("llama"))

    for number in range(4):
        engine.add_request(sampled_request(str(number), [1, 2], seed=None))

    assert len(set(run_to_end(engine).values())) > 1
