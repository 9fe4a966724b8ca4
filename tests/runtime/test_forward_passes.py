"""How many forward passes requests cost, and what they wait for."""

from flashgen_runtime.engine.base import EngineRequest
from flashgen_runtime.engine.sampling_params import SamplingParams
from tests.runtime_models import greedy_request, random_prompts, run_to_end, sizes, tiny_engine, tiny_module


def test_sixteen_requests_share_forward_passes() -> None:
    """16 requests of 64 tokens each take at most 90 forward passes; one by one they would take 1,024."""
    engine = tiny_engine(tiny_module("llama"), limits=sizes(max_num_batched_tokens=64))
    for index, prompt in enumerate(random_prompts(16)):
        engine.add_request(greedy_request(str(index), prompt, max_tokens=64))

    run_to_end(engine)

    assert engine.stats.steps <= 90


def test_late_request_does_not_wait_for_the_others() -> None:
    """A request that comes while 15 others decode has its first token before their last."""
    engine = tiny_engine(tiny_module("llama"))
    for index, prompt in enumerate(random_prompts(15)):
        engine.add_request(greedy_request(str(index), prompt, max_tokens=32))
    for _ in range(10):
        engine.step()

    engine.add_request(greedy_request("late", [1, 2, 3], max_tokens=4))
    outputs = engine.step()

    assert "late" in {output.request_id for output in outputs}
    assert not any(output.finish_reason for output in outputs)


def test_abort_frees_blocks_at_once() -> None:
    """Aborting waiting and running requests frees all they hold in the same call; unknown ids are ignored."""
    engine = tiny_engine(tiny_module("llama"), limits=sizes(max_num_seqs=2))
    for index, prompt in enumerate(random_prompts(4)):
        engine.add_request(greedy_request(str(index), prompt, max_tokens=32))
    engine.step()
    assert engine.stats.blocks_used > 0

    for request_id in ("0", "1", "2", "3", "nobody"):
        engine.abort(request_id)

    assert engine.stats.blocks_used == 0
    assert not engine.has_work
    assert engine.step() == []


def test_stop_string_ends_and_is_not_in_the_text() -> None:
    """A stop string that spans tokens ends the request in the step that completes it, and its blocks are free."""
    prompt = random_prompts(1)[0]
    engine = tiny_engine(tiny_module("llama"))
    engine.add_request(greedy_request("free", prompt, max_tokens=12))
    words = run_to_end(engine)["free"].split()
    stop = f"{words[5]} {words[6]}"

    engine.add_request(EngineRequest("stopped", prompt, SamplingParams(max_tokens=12, temperature=0, stop=(stop,))))
    outputs = []
    while engine.has_work:
        outputs += engine.step()

    assert "".join(output.text for output in outputs) == " " + " ".join(words[:5]) + " "
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].completion_tokens == 7
    assert engine.stats.blocks_used == 0


def test_end_of_sequence_token_counts_and_has_no_text() -> None:
    """The checkpoint's end-of-sequence token ends the request with reason "stop"."""
    prompt = random_prompts(1)[0]
    engine = tiny_engine(tiny_module("llama"))
    engine.add_request(greedy_request("free", prompt, max_tokens=6))
    words = run_to_end(engine)["free"].split()

    engine = tiny_engine(tiny_module("llama"), eos_ids=frozenset({int(words[3])}))
    engine.add_request(greedy_request("ended", prompt, max_tokens=6))
    outputs = []
    while engine.has_work:
        outputs += engine.step()

    expected = words[: words.index(words[3])]
    assert "".join(output.text for output in outputs).split() == expected
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].completion_tokens == len(expected) + 1
