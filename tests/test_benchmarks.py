"""The arithmetic of the benchmarks: workloads, ceilings, counted tokens, ratios. Nothing is measured."""

import sys

import pytest

from benchmarks.ceilings import Ceilings
from benchmarks.comparison import Comparison, compare, tokens_per_second
from benchmarks.engines import groups, only
from benchmarks.models import M, ModelShape, S
from benchmarks.protocol import Generated, TokenCounter
from benchmarks.report import Aim, row_of
from benchmarks.systems import Child, NotFinishedError, System, SystemFailedError
from benchmarks.workloads import batch, mixed, prefill

CEILINGS = Ceilings(
    read_bytes_per_second=1e9,
    fp32_operations_per_second=1e9,
    operations_per_second=dict.fromkeys(("bf16", "int8", "int4"), 1e30),
)

# A child that gives one token more than asked for, or hangs.
CHATTY = """
from benchmarks.protocol import Generated, serve_generator
class Chatty:
    settings = "chatty"
    def generate(self, prompts, output_lengths):
        return Generated(1.0, [length + 1 for length in output_lengths])
serve_generator(Chatty)
"""
HANGING = "import json, time; print(json.dumps({'settings': ''}), flush=True); time.sleep(60)"


def test_the_mixed_workload_has_the_tokens_that_were_published() -> None:
    """32 requests, 3,971 prompt and 2,967 output tokens, all of them in the tokenizer's range."""
    workload = mixed(M)

    assert (len(workload.prompts), workload.num_prompt_tokens, workload.num_output_tokens) == (32, 3971, 2967)
    assert all(0 <= token_id < M.tokenizer_size for prompt in workload.prompts for token_id in prompt)


def test_workloads_are_the_same_every_time() -> None:
    """Two runs can be compared."""
    assert mixed(S) == mixed(S)


def test_the_shapes_count_the_weights_of_the_models() -> None:
    """M has 440 million weights in its layers and 156 million in its embedding."""
    assert (M.layer_weights, M.head_weights) == (440_401_920, 155_582_464)


def test_without_a_limit_of_operations_decoding_is_bound_by_the_bytes_of_each_step() -> None:
    """One request of bf16: every step reads all weights once, at 1 GB/s."""
    seconds = CEILINGS.workload_seconds(M, batch(M, 1, prompt=1, output=10), "bf16")

    weights = 10 * 2 * (M.layer_weights + M.head_weights) / 1e9
    assert weights < seconds < 1.01 * weights


def test_a_prompt_longer_than_the_budget_is_computed_in_several_steps() -> None:
    """1,024 tokens in steps of 512 read the layers twice and the head once."""
    seconds = CEILINGS.workload_seconds(M, prefill(M, prompt=1024), "bf16")

    weights = (2 * 2 * M.layer_weights + 2 * M.head_weights) / 1e9
    assert weights < seconds < 1.2 * weights


def test_decoding_starts_to_count_when_every_request_has_a_token() -> None:
    """Tokens of the request that was first belong to the time before."""
    counter = TokenCounter(2)

    counter.add(0, 1)
    counter.add(0, 1)
    counter.add(1, 1)
    counter.add(1, 3)

    result = counter.result()
    assert (result.num_tokens, result.decode_tokens) == ([2, 4], 3)


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    """What slows the machine down in one round slows both systems."""
    ours, theirs = System("ours", "int8", _command), System("theirs", "int8", _command)
    workload = batch(S, 1, prompt=1, output=100)
    comparison = Comparison()
    comparison.runs[ours, workload.name] = [Generated(seconds, [100]) for seconds in (1.0, 2.0, 4.0)]
    comparison.runs[theirs, workload.name] = [Generated(seconds, [100]) for seconds in (2.0, 4.0, 12.0)]

    aims = comparison.ratio_aim("it", ("ours", "int8"), ("theirs", "int8"), workload, tokens_per_second, aim=2.5)

    assert [(aim.value, aim.met) for aim in aims] == [(2.0, False)]


def test_a_system_that_gives_another_number_of_tokens_fails() -> None:
    """Its rate would be that of other work."""
    comparison = compare(
        [[System("chatty", "bf16", lambda *_: [sys.executable, "-c", CHATTY])]],
        S,
        [batch(S, 1, prompt=1, output=2)],
        rounds=1,
        limit_seconds=20,
    )

    assert not comparison.runs
    assert "expected [8, 8, 8] tokens, got [9, 9, 9]" in comparison.notes[0]


def test_a_system_that_does_not_answer_in_time_is_ended() -> None:
    """The benchmark says so and goes on."""
    child = Child("hanging", [sys.executable, "-c", HANGING])

    with pytest.raises(NotFinishedError, match=r"did not answer within 0 s"):
        child.ask({}, limit_seconds=0.1)
    child.close()


def test_a_child_that_dies_names_its_log() -> None:
    """What it wrote to stderr is there."""
    with pytest.raises(SystemFailedError, match=r"ended; see .*dying\.log"):
        Child("dying", [sys.executable, "-c", "raise SystemExit(1)"])


def test_systems_are_chosen_by_name_or_by_name_and_precision() -> None:
    """`flashgen` is all of ours, `openvino int8` one of theirs."""
    chosen = only(groups(), "flashgen,openvino int8")

    names = [[f"{system.name} {system.precision}" for system in group] for group in chosen]
    assert names == [["flashgen bf16"], ["flashgen int8", "openvino int8"], ["flashgen int4"]]


def test_an_unknown_system_is_refused() -> None:
    """A typing error shall not measure nothing."""
    with pytest.raises(SystemExit, match="unknown systems flashgne"):
        only(groups(), "flashgne")


@pytest.mark.parametrize(
    ("metric", "value", "share"), [("tokens/s", 25.0, "50 % of 50.000"), ("seconds", 100.0, "50 % of 50.000")]
)
def test_the_share_of_a_time_is_the_least_time_by_it(metric: str, value: float, share: str) -> None:
    """More is better for rates and worse for times."""
    row = row_of([value], system="ours", workload="it", metric=metric, ceiling=50.0)

    assert row.share == share


def test_an_aim_to_reach_at_least_is_met_from_there_on() -> None:
    """The other direction than that of times."""
    assert Aim(id="it", what="it", aim=1.5, value=1.5, at_most=False).met
    assert not Aim(id="it", what="it", aim=1.5, value=1.49, at_most=False).met


def _command(_shape: ModelShape, _precision: str, _threads: int) -> list[str]:
    raise NotImplementedError
