"""Sampling parameters: ranges, and how the checkpoint's, the spec's and the request's come together."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from flashgen_runtime.engine.sampling_params import SamplingParams, check_vocab, merge_params
from flashgen_runtime.errors import RequestError
from flashgen_runtime.messages import GenerationParams


def refused_param(action: Callable[[], Any]) -> str | None:
    """The field that the refusal names."""
    with pytest.raises(RequestError) as caught:
        action()
    assert caught.value.kind == "invalid_request"
    assert f"`{caught.value.param}`" in caught.value.message
    return caught.value.param


def test_fields_are_those_of_a_request() -> None:
    """Whatever a caller can say about decoding has a place, and `logprobs` besides."""
    fields = {field.name for field in dataclasses.fields(SamplingParams)}

    assert fields == {*GenerationParams.__struct_fields__, "logprobs"}


def test_defaults_change_nothing() -> None:
    """Without any wish: plain sampling at temperature 1 as far as the context goes."""
    params = merge_params(GenerationParams(), room=7, logprobs=None)

    assert params == SamplingParams(max_tokens=7)
    assert not params.changes_logits
    assert not params.is_greedy


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("max_tokens", [1], [0]),
        ("temperature", [0, 2], [-0.1, 2.1, float("nan")]),
        ("top_p", [0.001, 1], [0, 1.1, float("nan")]),
        ("top_k", [1, 10**9], [0, -1]),
        ("min_p", [0, 0.999], [-0.1, 1, float("nan")]),
        ("typical_p", [0.001, 1], [0, 1.1, float("nan")]),
        ("repetition_penalty", [0.01, 10], [0, -1, 10.1, float("nan")]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1, float("nan")]),
        ("frequency_penalty", [-2, 2], [-2.1, 2.1, float("inf")]),
        ("n", [1, 128], [0, 129]),
        ("num_beams", [1, 16], [0, 17]),
        ("length_penalty", [-5, 5], [-5.1, 5.1]),
    ],
)
def test_ranges(field: str, good: list[Any], bad: list[Any]) -> None:
    """The ends of each range are within; beyond, the refusal names the field."""
    for value in good:
        assert getattr(merge_params(GenerationParams(**{field: value}), room=5), field) == value
    for value in bad:
        assert refused_param(lambda value=value: merge_params(GenerationParams(**{field: value}), room=5)) == field


@pytest.mark.parametrize("logprobs", [-1, 21])
def test_logprobs_out_of_range(logprobs: int) -> None:
    """Between none and 20 alternatives."""
    assert refused_param(lambda: merge_params(GenerationParams(), room=5, logprobs=logprobs)) == "logprobs"


def test_logit_bias_by_token_id() -> None:
    """OpenAI's form, ids as text, becomes pairs in the order of ids; a later source replaces an earlier one's."""
    merged = merge_params(
        GenerationParams(logit_bias={"1": 1.0}), GenerationParams(logit_bias={"50": -100, "7": 2.5}), room=5
    )

    assert merged.logit_bias == ((7, 2.5), (50, -100))
    assert merged.changes_logits


@pytest.mark.parametrize("bias", [{"x": 1.0}, {"-1": 1.0}, {"1_0": 1.0}, {"\u0661": 1.0}, {"": 1.0}, {"1" * 30: 1.0}])
def test_logit_bias_of_no_token(bias: dict[str, float]) -> None:
    """Keys that are no token ids."""
    assert refused_param(lambda: merge_params(GenerationParams(logit_bias=bias), room=5)) == "logit_bias"


def test_logit_bias_out_of_range() -> None:
    """Too large a bias, too many of them, and a token that the model does not have."""
    many = {str(token_id): 1.0 for token_id in range(301)}
    for bias in ({"1": 100.5}, {"1": float("nan")}, many):
        assert refused_param(lambda bias=bias: merge_params(GenerationParams(logit_bias=bias), room=5)) == "logit_bias"

    params = merge_params(GenerationParams(logit_bias={"99": 1.0}), room=5)

    check_vocab(params, 100)
    assert refused_param(lambda: check_vocab(params, 99)) == "logit_bias"


def test_choices_of_a_beam_search() -> None:
    """A search gives at most as many choices as it has beams."""
    assert merge_params(GenerationParams(n=4, num_beams=4), room=5).n == 4
    assert refused_param(lambda: merge_params(GenerationParams(n=5, num_beams=4), room=5)) == "n"


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0.7), ("top_p", 0.9), ("top_k", 5), ("min_p", 0.1), ("typical_p", 0.9)]
)
def test_a_request_cannot_draw_and_search(field: str, value: float) -> None:
    """Beam search does not sample: what the same request says about sampling contradicts it."""
    request = GenerationParams(num_beams=2, **{field: value})

    assert refused_param(lambda: merge_params(GenerationParams(), request, room=5)) == field
    assert refused_param(
        lambda: merge_params(GenerationParams(num_beams=2), GenerationParams(**{field: value}), room=5)
    )


def test_a_beam_search_drops_how_the_spec_draws() -> None:
    """Lower sources' sampling gives way; penalties stay; what does nothing may be said."""
    spec = GenerationParams(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, typical_p=0.9, presence_penalty=1.0)
    request = GenerationParams(num_beams=2, temperature=0, top_p=1, min_p=0)

    params = merge_params(spec, request, room=5)

    assert params == SamplingParams(max_tokens=5, num_beams=2, temperature=0, presence_penalty=1.0)
