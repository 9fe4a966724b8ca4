"""Embeddings as a served model: batches over a fake encoder, vectors over the real one."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from flashgen_runtime.config import FolderSource, ModelConfig
from flashgen_runtime.errors import ConfigError, RequestError, WeightsError
from flashgen_runtime.loader.sentence_transformers import read_max_seq_length, read_pooling
from flashgen_runtime.messages import Embeddings, EmbedRequest, GenerateRequest, GenerationParams, ModelStatus
from flashgen_runtime.models.base import ServedModel
from flashgen_runtime.models.embeddings import EmbeddingsModel
from flashgen_runtime.models.registry import load_served_model
from tests.runtime_models import sizes

MODELS = Path(__file__).parents[2] / "samples" / "models"
MINILM = MODELS / "all-MiniLM-L6-v2"


class FakeEncoder:
    """A text's vector is its first token; notes every batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def encode(self, sequences: Sequence[Sequence[int]]) -> list[bytes]:
        self.batches.append([len(sequence) for sequence in sequences])
        return [struct.pack("<f", sequence[0]) for sequence in sequences]


class CharacterTokenizer:
    """One token per character."""

    vocab_size = 128

    def encode_truncated(self, text: str, *, max_tokens: int) -> list[int]:
        return list(text.encode())[:max_tokens]


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


def model_with(encoder: FakeEncoder, **options: Any) -> EmbeddingsModel:
    status = ModelStatus(id="m", max_context=8)
    return EmbeddingsModel(
        status, encoder=encoder, tokenizer=CharacterTokenizer(), max_num_batched_tokens=10, **options
    )


def embed(model: ServedModel, name: str, inputs: Any) -> None:
    model.add(model.prepare(EmbedRequest(request_id=name, model="m", inputs=inputs)))


def answers(model: ServedModel) -> dict[str, Embeddings]:
    replies: dict[str, Embeddings] = {}
    while model.has_work:
        replies.update((reply.request_id, reply) for reply in model.step() if isinstance(reply, Embeddings))
    return replies


def first_tokens(answer: Embeddings) -> str:
    return "".join(chr(int(struct.unpack("<f", vector)[0])) for vector in answer.vectors)


def test_requests_share_batches_within_the_budget(encoder: FakeEncoder) -> None:
    """Texts of all waiting requests fill a forward pass, ordered by length; a large request takes several."""
    model = model_with(encoder)
    embed(model, "one", ["aaaa", "b", "ccccccc"])
    embed(model, "two", ["dd", "eee"])

    replies = answers(model)

    assert encoder.batches == [[1, 2, 3, 4], [7]]
    assert first_tokens(replies["one"]) == "abc"
    assert first_tokens(replies["two"]) == "de"
    assert replies["one"].prompt_tokens == 12


def test_a_request_is_answered_when_its_last_text_is_done(encoder: FakeEncoder) -> None:
    """A small request behind a large one does not wait for its end."""
    model = model_with(encoder)
    embed(model, "large", ["aaaaaaaa"] * 3)
    embed(model, "small", ["b"])

    first = model.step()

    assert [reply.request_id for reply in first] == ["small"]
    assert set(answers(model)) == {"large"}


def test_long_texts_are_cut(encoder: FakeEncoder) -> None:
    """What exceeds the model's length is cut off, texts and ids alike."""
    model = model_with(encoder)
    embed(model, "text", ["a" * 50])
    embed(model, "ids", [[98] * 50])

    replies = answers(model)

    assert replies["text"].prompt_tokens == replies["ids"].prompt_tokens == 8


def test_abort_drops_what_waits(encoder: FakeEncoder) -> None:
    """An aborted request costs nothing more, and nobody else's texts are lost."""
    model = model_with(encoder)
    embed(model, "gone", ["aaaaaaaa"] * 5)
    embed(model, "stays", ["b"])
    model.step()

    model.abort("gone")
    model.abort("nobody")

    assert not model.has_work


class Clock:
    """Time that passes when the test says so."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_text_waits_for_company(encoder: FakeEncoder) -> None:
    """A forward pass that is not full runs when its oldest text has waited long enough."""
    clock = Clock()
    model = model_with(encoder, max_wait_seconds=0.5, clock=clock)

    embed(model, "one", ["aaaa"])
    assert (model.has_work, model.seconds_until_work, model.step()) == (False, 0.5, [])

    clock.seconds += 0.25
    embed(model, "two", ["bb"])
    assert model.seconds_until_work == 0.25

    clock.seconds += 0.25
    assert model.has_work
    assert len(model.step()) == 2
    assert (model.has_work, model.seconds_until_work) == (False, None)
    assert encoder.batches == [[2, 4]]


def test_a_full_batch_does_not_wait(encoder: FakeEncoder) -> None:
    """What is left over of it waits its own time; an aborted text is no company."""
    model = model_with(encoder, max_wait_seconds=0.5, clock=Clock())

    embed(model, "one", ["aaaa"])
    embed(model, "two", ["bbbbbbb"])
    assert [reply.request_id for reply in model.step()] == ["one"]
    assert not model.has_work

    embed(model, "three", ["ccc"])
    assert model.has_work
    model.abort("three")
    assert not model.has_work


@pytest.mark.parametrize("inputs", [[], [""], [[]], [[128]], [[-1]]])
def test_bad_inputs_name_the_field(encoder: FakeEncoder, inputs: Any) -> None:
    """Nothing to embed, and ids that the model does not know."""
    with pytest.raises(RequestError) as caught:
        embed(model_with(encoder), "r", inputs)

    assert caught.value.param == "input"


def test_generation_is_refused(encoder: FakeEncoder) -> None:
    """An encoder writes no text."""
    with pytest.raises(RequestError) as caught:
        model_with(encoder).prepare(GenerateRequest(request_id="r", model="m", prompt="a"))

    assert caught.value.param == "model"


TEXTS = [
    "hello",
    "A man is eating a piece of bread.",
    "hello",
    "The girl is carrying a baby. " * 60,
    "naïve café, 北京, and an emoji 🙂",
    "",
    "x" * 600,
    *(f"sentence number {number} " * (number % 5 + 1) for number in range(20)),
]


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """Mean pooling and normalisation over transformers' own BertModel, one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    module = AutoModel.from_pretrained(MINILM, dtype=torch.float32).eval()
    encoded = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = module(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def minilm(folder: Path = MODELS, *, max_num_batched_tokens: int = 512, max_context: int | None = None) -> ServedModel:
    config = ModelConfig(
        id="minilm",
        aliases=(),
        task="feature-extraction",
        source=FolderSource(folder="all-MiniLM-L6-v2"),
        dtype="float32",
        quantization=None,
        device="cpu",
        max_context=max_context,
        chat_template=None,
        generation_params=GenerationParams(),
        prefetch=(),
        speculative=None,
        weight_bytes=None,
        sequence_kv_bytes=None,
    )
    return load_served_model(config, sizes(max_num_batched_tokens=max_num_batched_tokens), folder / "all-MiniLM-L6-v2")


@pytest.mark.parametrize("budget", [64, 512, 8192])
def test_vectors_equal_the_reference(expected: torch.Tensor, budget: int) -> None:
    """However texts are batched, vectors equal mean pooling plus normalisation to 1e-5."""
    model = minilm(max_num_batched_tokens=budget)
    embed(model, "r", TEXTS)

    vectors = [torch.frombuffer(bytearray(vector), dtype=torch.float32) for vector in answers(model)["r"].vectors]

    assert (torch.stack(vectors) - expected).abs().max() < 1e-5
    assert model.status.max_context == 256


def test_max_context_shortens_texts_but_not_beyond_the_model() -> None:
    """A configured context is the length that counts; the checkpoint's own limit holds."""
    model = minilm(max_context=16)
    embed(model, "r", ["word " * 100])
    assert answers(model)["r"].prompt_tokens == 16

    with pytest.raises(ConfigError, match="`max_context` is 1000, but the checkpoint has positions for 256 tokens"):
        minilm(max_context=1000)


def write_json(path: Path, tree: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
    ],
)
def test_pooling_of_the_checkpoint(tmp_path: Path, config: Any, pooling: str) -> None:
    """The checkpoint says how its vectors are made."""
    write_json(tmp_path / "1_Pooling" / "config.json", config)

    assert read_pooling(tmp_path) == pooling


def test_pooling_that_is_not_said(tmp_path: Path) -> None:
    """A plain encoder takes the mean and has no length of its own."""
    assert read_pooling(tmp_path) == "mean"
    assert read_max_seq_length(tmp_path) is None


@pytest.mark.parametrize(
    ("file", "tree", "problem"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling not supported"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True},
            "pooling not supported",
        ),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "models.Dense' is not supported yet"),
        ("modules.json", {"a": 1}, "is not a list of modules"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, file: str, tree: Any, problem: str) -> None:
    """Other poolings and further modules would give other vectors."""
    write_json(tmp_path / file, tree)

    with pytest.raises(WeightsError) as caught:
        read_pooling(tmp_path)

    assert problem in str(caught.value)
