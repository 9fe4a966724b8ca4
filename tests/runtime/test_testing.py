"""The public fakes: their laws, and a whole service of them."""

import asyncio
import math
import struct
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from flashgen_runtime import testing
from flashgen_runtime.engine.base import EngineRequest
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.messages import EmbedRequest, GenerateRequest, ModelStatus, TokenLogprob
from flashgen_runtime.testing import (
    CharacterTokenizer,
    FakeEmbeddings,
    FakeEngine,
    FakeLibrary,
    fake_service,
    fake_vector,
)
from tests.runtime_workers import TIMEOUT_SECONDS, model_config, replies_of, server_config, service_yaml, text_of


def request(request_id: str, prompt: str, *, max_tokens: int = 5, stop: tuple[str, ...] = ()) -> EngineRequest:
    ids = CharacterTokenizer().encode(prompt, add_special_tokens=True)
    return EngineRequest(request_id, ids, SamplingParams(max_tokens=max_tokens, stop=stop))


def run_to_end(engine: FakeEngine) -> list[list[tuple[str, str, str | None]]]:
    """What each step brought."""
    steps = []
    while engine.has_work:
        steps.append([(output.request_id, output.text, output.finish_reason) for output in engine.step()])
    return steps


def test_the_fake_engine_repeats_its_prompt():
    """One character per step, from the first, again and again."""
    engine = FakeEngine()

    engine.add_request(request("r", "ab", max_tokens=3))

    assert run_to_end(engine) == [[("r", "a", None)], [("r", "b", None)], [("r", "a", "length")]]


def test_the_fake_engine_serves_requests_together():
    """Every running request has one character per step; beyond `max_num_seqs` requests wait."""
    engine = FakeEngine(max_num_seqs=2)

    for name in "abc":
        engine.add_request(request(name, name, max_tokens=1))

    assert run_to_end(engine) == [[("a", "a", "length"), ("b", "b", "length")], [("c", "c", "length")]]


@pytest.mark.parametrize(
    ("prompt", "stop", "text", "finish_reason"),
    [
        ("hello world", ("wor",), "hello ", "stop"),
        ("hello", ("xyz",), "hello" * 4, "length"),
        ("abab", ("babb",), "abab" * 5, "length"),
        ("abc", ("c", "bc"), "a", "stop"),
    ],
)
def test_the_fake_engine_knows_stop_strings(prompt, stop, text, finish_reason):
    """Text ends before the first stop string; what only looks like one is not lost."""
    engine = FakeEngine()

    engine.add_request(request("r", prompt, max_tokens=20, stop=stop))

    outputs = [output for step in run_to_end(engine) for output in step]
    assert "".join(output[1] for output in outputs) == text
    assert outputs[-1][2] == finish_reason


def test_the_fake_engine_gives_several_choices():
    """Each begins one character later; the request is open until all have ended."""
    engine = FakeEngine()
    ids = CharacterTokenizer().encode("abc", add_special_tokens=True)
    engine.add_request(EngineRequest("r", ids, SamplingParams(max_tokens=2, n=2, stop=("bc",))))

    outputs = [output for _ in range(2) for output in engine.step()]

    assert [(output.index, output.text, output.finish_reason, output.open_choices) for output in outputs] == [
        (0, "a", None, 2),
        (1, "", None, 2),
        (0, "b", "length", 1),
        (1, "", "stop", 0),
    ]
    assert not engine.has_work


def test_the_fake_engine_gives_log_probabilities():
    """The token's own, and those of the characters that follow it."""
    engine = FakeEngine()
    engine.add_request(EngineRequest("r", [97, 98], SamplingParams(max_tokens=1, logprobs=2)))

    (output,) = engine.step()

    assert output.logprobs == [TokenLogprob("a", 97, -0.5, [("a", 97, -0.5), ("b", 98, -1.5)])]


def test_the_fake_engine_forgets_what_is_aborted():
    """An aborted request takes no further step; an unknown one is ignored."""
    engine = FakeEngine()
    engine.add_request(request("r", "ab"))

    engine.abort("r")
    engine.abort("unknown")

    assert not engine.has_work


def test_the_fake_engine_fails_on_demand():
    """`fail_after` steps are fine, the next one raises."""
    engine = FakeEngine(fail_after=1)
    engine.add_request(request("r", "ab"))
    engine.step()

    with pytest.raises(RuntimeError, match="fails after 1 steps"):
        engine.step()


def test_characters_survive_the_tokenizer():
    """Every character is one token; a surrogate, which is no character, becomes a question mark."""
    tokenizer = CharacterTokenizer()

    ids = tokenizer.encode("aé😀", add_special_tokens=True)

    assert len(ids) == 3
    assert tokenizer.decode(ids) == "aé😀"
    assert tokenizer.decode([0xD800]) == "?"
    assert max(ids) < tokenizer.vocab_size


def test_a_fake_vector_is_a_unit_vector_of_its_text():
    """Equal texts have equal vectors of length 1, others have others."""
    vector = fake_vector("text")

    assert len(vector) == 8
    assert math.isclose(math.hypot(*vector), 1)
    assert vector == fake_vector("text")
    assert vector != fake_vector("test")


def test_fake_embeddings_answer_all_in_one_step():
    """Texts and lists of token ids become vectors; what is aborted is not answered."""
    model = FakeEmbeddings(ModelStatus(id="fake"))
    for request_id, inputs in (("a", ["one", "x"]), ("b", [[111, 110, 101]]), ("c", ["two"])):
        model.add(model.prepare(EmbedRequest(request_id=request_id, model="fake", inputs=inputs)))
    model.abort("c")

    one, other = model.step()

    assert (one.request_id, other.request_id, one.prompt_tokens) == ("a", "b", 4)
    assert one.vectors[0] == other.vectors[0] == struct.pack("<8f", *fake_vector("one"))
    assert not model.has_work


def test_a_fake_model_has_the_limits_of_its_configuration():
    """Without `max_tokens` a fake generates 16 tokens."""
    model = FakeLibrary(server_config()).load(model_config(), Path())

    prepared = model.prepare(GenerateRequest(request_id="r", model="fake", prompt="ab"))

    assert prepared.params.max_tokens == 16


def test_a_fake_service_answers_as_soon_as_it_has_started(tmp_path: Path):
    """Workers, transport and models are in this process, and ready when `start` returns."""
    path = tmp_path / "service.yaml"
    path.write_text(service_yaml())

    async def main() -> tuple[bool, str]:
        service = fake_service(path)
        await service.start()
        try:
            connection = service.pools["fake"].members[0].connection
            request = GenerateRequest(request_id="r", model="fake", prompt="abc")
            return service.readyz().ok, text_of(await replies_of(connection, request))
        finally:
            await service.close()

    assert asyncio.run(main()) == (True, "abcabcabcabcabca")


def test_a_fake_service_may_take_its_time(tmp_path: Path):
    """`delay_seconds` is the duration of a step, so that a test can see a stream while it runs."""
    path = tmp_path / "service.yaml"
    path.write_text(service_yaml())

    async def main() -> float:
        service = fake_service(path, delay_seconds=0.02)
        await service.start()
        try:
            connection = service.pools["fake"].members[0].connection
            request = GenerateRequest(request_id="r", model="fake", prompt="abc")
            began = asyncio.get_running_loop().time()
            async with asyncio.timeout(TIMEOUT_SECONDS), aclosing(connection.stream(request)) as stream:
                await anext(stream)
                await anext(stream)
            return asyncio.get_running_loop().time() - began
        finally:
            await service.close()

    assert asyncio.run(main()) >= 0.04


def test_fakes_do_not_need_torch():
    """Generated projects test their API where torch is not installed."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "import flashgen_runtime.testing.service, flashgen_runtime.testing.worker"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_fake_worker_does_not_need_fastapi():
    """A worker's environment has no web framework."""
    code = "import sys; sys.modules['fastapi'] = None; import flashgen_runtime.testing.worker"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    """Names that are imported on first use are found as well as the others."""
    for name in testing.__all__:
        assert getattr(testing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = testing.nothing
