"""Log probabilities of sampled tokens: those of the model's own logits, whatever sampling does to them."""

from typing import Any

import pytest
import torch

from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampler import SampledToken, Sampler
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.kernels import library, sampling


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels, and as on a machine without them."""
    if request.param == "torch":
        monkeypatch.setattr(sampling, "library", lambda: None)
    elif library.library() is None:
        pytest.skip("no kernels for this processor")


def sample(logits: torch.Tensor, **params: Any) -> SampledToken:
    """The token of one row; logits: [V]."""
    request = Request(
        request_id="row",
        params=SamplingParams(max_tokens=100, **params),
        token_ids=[0, 1, 2],
        num_prompt_tokens=1,
        seed=3,
        eos_ids=frozenset(),
    )
    return Sampler().sample(logits[None], [request])[0]


@pytest.mark.parametrize("vocab_size", [30, 4000])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_chosen_token_and_the_best(vocab_size: int, count: int) -> None:
    """The chosen token's own, and as many best ones as the request asks for, best first."""
    torch.manual_seed(count)
    logits = torch.randn(vocab_size) * 3
    expected = logits.log_softmax(dim=-1)

    token_id, found = sample(logits, temperature=2, logprobs=count)

    assert found is not None
    assert found.logprob == pytest.approx(float(expected[token_id]), abs=1e-5)
    best = expected.topk(count)
    assert [token_id for token_id, _ in found.top] == best.indices.tolist()
    assert [logprob for _, logprob in found.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_nothing_unless_asked() -> None:
    """A request that does not ask gets none."""
    assert sample(torch.zeros(10)).logprobs is None


def test_before_temperature_penalties_and_filters() -> None:
    """What changes the choice does not change the report, even where it makes the chosen token the only one."""
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
    changes = {"temperature": 0.1, "top_k": 1, "repetition_penalty": 5.0, "logit_bias": ((3, -100.0), (0, 50.0))}

    token_id, found = sample(logits, logprobs=2, **changes)

    assert token_id == 0
    assert found is not None
    assert found.logprob == pytest.approx(float(logits.log_softmax(dim=-1)[0]))
    assert [token_id for token_id, _ in found.top] == [3, 2]


def test_equal_logits_come_by_id() -> None:
    """Of equal tokens those with the lower ids are reported, in their order."""
    found = sample(torch.zeros(5000), logprobs=4).logprobs

    assert found is not None
    assert [token_id for token_id, _ in found.top] == [0, 1, 2, 3]


def test_more_than_the_vocabulary_and_impossible_tokens() -> None:
    """A small vocabulary gives all it has; impossible tokens come last, with minus infinity."""
    found = sample(torch.tensor([1.0, -torch.inf, 1.0]), logprobs=5).logprobs

    assert found is not None
    half = pytest.approx(-0.693147, abs=1e-5)
    assert found.top == [(0, half), (2, half), (1, -torch.inf)]
