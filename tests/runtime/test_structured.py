"""Structured output: tokens that a grammar's mask forbids never come, and the grammar hears of those that come."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampler import Sampler
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.structured import TokenMask, allowed_words
from flashgen_runtime.kernels import library, sampling

VOCAB_SIZE = 70
EOS = 69


class Countdown:
    """Allows one token at a time: the number that was started with, then the next lower one; after 0 nothing."""

    def __init__(self, number: int) -> None:
        self.next = number

    def bitmask(self) -> bytes:
        words = [0, 0, 0]
        if self.next >= 0:
            words[self.next // 32] = 1 << self.next % 32
        return struct.pack("<3I", *words)

    def accept(self, token_id: int) -> None:
        assert token_id in (self.next, EOS)
        self.next -= 1

    def copy(self) -> "Countdown":
        return Countdown(self.next)


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels, and as on a machine without them."""
    if request.param == "torch":
        monkeypatch.setattr(sampling, "library", lambda: None)
    elif library.library() is None:
        pytest.skip("no kernels for this processor")


def masked(mask: TokenMask | None, **params: Any) -> Request:
    return Request(
        request_id="row",
        params=SamplingParams(max_tokens=100, **params),
        token_ids=[0],
        num_prompt_tokens=1,
        seed=3,
        eos_ids=frozenset({EOS}),
        token_mask=mask,
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_come(temperature: float) -> None:
    """Step by step the tokens are the grammar's, beside rows that have none; then the completion ends."""
    sampler = Sampler()
    requests = [masked(Countdown(66), temperature=temperature), masked(Countdown(64)), masked(None, temperature=0)]
    logits = torch.randn(3, VOCAB_SIZE)
    logits[2, 5] = 100

    steps = []
    for _ in range(66):
        tokens = sampler.sample(logits, requests)
        steps.append([token.token_id for token in tokens])

    assert [step[0] for step in steps] == list(range(66, 0, -1))
    assert [step[1] for step in steps] == [*range(64, -1, -1), EOS]
    assert {step[2] for step in steps} == {5}


def test_bias_does_not_lift_a_mask() -> None:
    """The mask comes after the biases."""
    request = masked(Countdown(7), temperature=0, logit_bias=((9, 100.0),))

    assert Sampler().sample(torch.zeros(1, VOCAB_SIZE), [request])[0].token_id == 7


def test_beams_are_masked_and_the_mask_is_not_told() -> None:
    """Candidates are the allowed ones first; which of them a beam goes on with is not known yet."""
    mask = Countdown(40)

    log_probs, token_ids = Sampler().beam_candidates(torch.zeros(1, VOCAB_SIZE), [masked(mask, num_beams=2)], 2)

    assert token_ids[0, 0] == 40
    assert log_probs[0, 1] == -torch.inf
    assert mask.next == 40


@pytest.mark.parametrize("num_words", [1, 3, 5])
def test_masks_of_other_sizes(num_words: int) -> None:
    """A grammar's vocabulary may be smaller or larger than the model's: what it does not know never comes."""

    class Everything(Countdown):
        def bitmask(self) -> bytes:
            return b"\xff" * 4 * num_words

    words = allowed_words(Everything(0), vocab_size=VOCAB_SIZE, eos_ids=[])

    assert words == bytearray((b"\xff" * 4 * num_words).ljust(12, b"\0")[:12])


def test_an_empty_mask_allows_the_end() -> None:
    """A grammar that allows nothing has come to its end."""
    words = allowed_words(Countdown(-1), vocab_size=VOCAB_SIZE, eos_ids=[EOS, 2, 1000])

    assert int.from_bytes(words, "little") == 1 << EOS | 1 << 2


def test_module_is_free_of_torch() -> None:
    """The engine's interface names masks, in processes that have no torch."""
    code = "import sys; sys.modules['torch'] = None\n"
    code += "import flashgen_runtime.engine.structured, flashgen_runtime.engine.token_counts"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2] / "runtime_lib")
