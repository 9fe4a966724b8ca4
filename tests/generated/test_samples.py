"""Every sample as its user meets it: built, checked, started, asked by the real client, compared with transformers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from openai import OpenAI
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from tests.generated.service import SAMPLES, Running, build, copy_sample, run

pytestmark = pytest.mark.slow

ALL_SAMPLES = ["01-complete-python", "02-first-spec", "03-embeddings", "04-many-models", "05-guessing-ahead"]
PROMPTS = ["def read_lines(path):\n", "import os\n\nclass Reader:\n    def __init__(self, "]
SENTENCES = ["A cat sits on the mat.", "Ein Hund bellt.", "", "word " * 400]


@pytest.fixture(scope="module", params=ALL_SAMPLES)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample's project, freshly built."""
    folder = tmp_path_factory.mktemp("project") / request.param[3:]
    build(SAMPLES / request.param / "flashgen.yaml", folder)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["pytest"],
    ],
    ids=lambda command: command[0] + command[1] if len(command) > 1 else command[0],
)
def test_a_generated_project_passes_its_own_checks(project: Path, command: list[str]) -> None:
    """The linter, the formatter, strict types and the project's own tests pass without weights, on a CPU."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLASHGEN", "PYTEST"))}

    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=project, env=environment, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Sample 01, running."""
    folder = tmp_path_factory.mktemp("coder")
    with run(copy_sample("01-complete-python", "stdlib-coder", folder), folder / "cache") as service:
        service.wait_for_readyz(200)
        yield service


@pytest.fixture(scope="module")
def client(coder: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{coder.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("prompt", PROMPTS)
def test_completions_equal_transformers(client: OpenAI, prompt: str) -> None:
    """A greedy completion, whole and streamed, is the text that `generate` gives."""
    expected = _generate(prompt, 48)
    arguments = {"model": "stdlib-coder", "prompt": prompt, "max_tokens": 48, "temperature": 0}

    whole = client.completions.create(**arguments)
    streamed = client.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    chunks = list(streamed)

    assert whole.choices[0].text == expected
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].usage == whole.usage


def test_chat_equals_transformers(client: OpenAI) -> None:
    """A greedy chat answer, whole and streamed, is what `generate` gives for the checkpoint's own template."""
    messages = [{"role": "user", "content": PROMPTS[0]}]
    tokenizer = AutoTokenizer.from_pretrained(SAMPLES / "models" / "stdlib-coder")
    expected = _generate(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), 48)
    arguments = {"model": "stdlib-coder", "messages": messages, "max_tokens": 48, "temperature": 0}

    whole = client.chat.completions.create(**arguments)
    streamed = list(client.chat.completions.create(**arguments, stream=True))

    assert whole.choices[0].message.content == expected
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == expected
    assert streamed[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_generate_answers_prompt_and_response(coder: Running, client: OpenAI) -> None:
    """`/generate/` gives the prompt back with the response."""
    answer = client.post(
        f"{coder.url}/generate/", body={"prompt": PROMPTS[0], "max_tokens": 48, "temperature": 0}, cast_to=dict
    )

    assert answer == {"prompt": PROMPTS[0], "response": _generate(PROMPTS[0], 48)}


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    """Another model's name gives 404 in OpenAI's shape, which the client turns into its own error."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-5", prompt="x")

    assert caught.value.code == "model_not_found"


def test_models_are_listed(client: OpenAI) -> None:
    """`/v1/models` names the model that the spec declares."""
    assert [model.id for model in client.models.list()] == ["stdlib-coder"]


def test_embeddings_equal_transformers(tmp_path: Path) -> None:
    """Vectors in both encodings equal mean pooling plus normalisation over transformers' model, to 1e-5."""
    expected = _embed(SENTENCES)
    spec = copy_sample("03-embeddings", "all-MiniLM-L6-v2", tmp_path)

    with run(spec, tmp_path / "cache") as service, OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        service.wait_for_readyz(200)
        base64 = client.embeddings.create(model="all-MiniLM-L6-v2", input=SENTENCES)
        floats = client.embeddings.create(model="text-embedding-3-small", input=SENTENCES, encoding_format="float")

    for answer in (base64, floats):
        vectors = torch.tensor([item.embedding for item in answer.data])
        assert (vectors - expected).abs().max() <= 1e-5


def test_many_models_answer_from_one_worker(tmp_path: Path) -> None:
    """Each by its name, also the third one, for which another model has to go."""
    expected_text, expected_vectors = _generate(PROMPTS[0], 32), _embed(SENTENCES[:2])
    spec = SAMPLES / "04-many-models" / "flashgen.yaml"

    with run(spec, tmp_path / "cache") as service, OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        service.wait_for_readyz(200)
        listed = [model.id for model in client.models.list()]
        for _ in range(2):
            exact = _completed(client, "coder")
            rounded = _completed(client, "coder-int8")
            vectors = client.embeddings.create(model="sentences", input=SENTENCES[:2])

            assert exact == expected_text
            assert rounded
            assert (torch.tensor([item.embedding for item in vectors.data]) - expected_vectors).abs().max() <= 1e-5

    assert listed == ["coder", "coder-int8", "sentences"]


def test_guessed_tokens_change_no_answer(tmp_path: Path) -> None:
    """From the text and by a draft model: it is what `generate` gives, and the models say who guesses."""
    expected = _generate(PROMPTS[0], 32)
    spec = SAMPLES / "05-guessing-ahead" / "flashgen.yaml"

    with run(spec, tmp_path / "cache") as service, OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        service.wait_for_readyz(200)
        listed = {model.id: model.model_extra["speculative"] for model in client.models.list() if model.model_extra}
        texts = [_completed(client, model) for model in ("coder", "editor")]

    assert listed == {"coder": "draft", "editor": "ngram"}
    assert texts == [expected] * 2


def test_the_command_line_loads_and_unloads_models_of_a_running_worker(tmp_path: Path) -> None:
    """`models load`, `unload` and `list --url` against the worker of sample 04; a model that it lacks is an error."""
    spec = SAMPLES / "04-many-models" / "flashgen.yaml"

    with run(spec, tmp_path / "cache") as service:
        service.wait_for_readyz(200)
        ports = re.findall(r"listening.*rpc_port\D+\d+\D+operations_port\D+(\d+)", service.log.read_text())
        url = f"http://127.0.0.1:{ports[0]}"

        def models(*arguments: str) -> "subprocess.CompletedProcess[str]":
            command = [sys.executable, "-m", "flashgen", "models", *arguments, "--url", url]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        def residency() -> dict[str, str]:
            return {each["id"]: each["residency"] for each in json.loads(models("list", "--json").stdout)}

        assert residency() == {"coder": "loaded", "coder-int8": "unloaded", "sentences": "unloaded"}
        assert models("load", "sentences").returncode == 0
        assert residency()["sentences"] == "loaded"
        assert models("unload", "default").returncode == 0
        assert residency()["coder"] == "unloaded"
        missing = models("load", "nobody")
        assert missing.returncode != 0
        assert "nobody" in missing.stderr


def _completed(client: OpenAI, model: str) -> str:
    answer = client.completions.create(model=model, prompt=PROMPTS[0], max_tokens=32, temperature=0)
    return answer.choices[0].text


def _generate(text: str, max_new_tokens: int) -> str:
    folder = SAMPLES / "models" / "stdlib-coder"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(text, return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
    completion: str = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return completion


def _embed(sentences: list[str]) -> torch.Tensor:
    folder = SAMPLES / "models" / "all-MiniLM-L6-v2"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(sentences, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)
