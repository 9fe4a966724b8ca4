"""Who guesses for a model by its configuration, and what draft models take of the worker's disk and memory."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from flashgen_runtime.config import DraftConfig, FolderSource, HubSource, ModelConfig, SpeculativeConfig
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.sampling_params import SamplingParams
from flashgen_runtime.engine.speculative import Speculation
from flashgen_runtime.errors import ConfigError, WeightsError
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.store import Store
from flashgen_runtime.messages import GenerateRequest, GenerationParams, TextDelta
from flashgen_runtime.models.registry import load_served_model, measure_model, weight_files
from flashgen_runtime.models.speculation import draft_models, speculation_of
from flashgen_runtime.models.text_generation import TextGenerationModel
from flashgen_runtime.worker.capacity import planned_bytes
from flashgen_runtime.worker.loading import CheckpointLibrary
from tests.law_model import LawModel
from tests.runtime_models import NumberTokenizer, sizes, tiny_module
from tests.runtime_workers import model_config, server_config

SAMPLES = Path(__file__).parent.parent.parent / "samples" / "models"
NGRAM = SpeculativeConfig(method="ngram", num_tokens=3, drafts=())


def draft_config(name: str, *, weight_bytes: int | None = None) -> DraftConfig:
    source = FolderSource(folder=name)
    return DraftConfig(id=name, source=source, dtype="float32", quantization=None, weight_bytes=weight_bytes)


def drafted(*names: str) -> ModelConfig:
    """The model `large`, for which others guess."""
    drafts = tuple(draft_config(name) for name in names)
    method = "draft" if len(names) == 1 else "tree"
    return replace(model_config("large"), speculative=SpeculativeConfig(method=method, num_tokens=4, drafts=drafts))


def guessing(config: ModelConfig, model: LawModel | None = None) -> Speculation | None:
    return speculation_of(
        config,
        model or LawModel(),
        tokenizer=NumberTokenizer(),
        engine=sizes(),
        max_context=64,
        draft_paths=(),
        access=None,
    )


def wish(speculation: Speculation, *, predicted_ids: list[int]) -> int:
    """Tokens to guess for a request, after a first step was measured."""
    speculation.note_step(1, 0.01)
    request = Request(
        request_id="r",
        params=SamplingParams(max_tokens=20),
        token_ids=[1, 2, 3],
        num_prompt_tokens=3,
        seed=0,
        eos_ids=frozenset(),
        predicted_ids=predicted_ids,
    )
    return speculation.wish(request, max_tokens=20, max_rows=20, num_running=1)


@pytest.mark.parametrize(
    ("method", "num_drafts", "num_tokens", "is_right"),
    [
        ("ngram", 0, 1, True),
        ("ngram", 1, 4, False),
        ("draft", 0, 4, False),
        ("draft", 1, 16, True),
        ("draft", 2, 4, False),
        ("tree", 1, 4, False),
        ("tree", 2, 4, True),
        ("tree", 5, 4, False),
        ("ngram", 0, 0, False),
        ("ngram", 0, 17, False),
    ],
)
def test_each_method_has_its_number_of_draft_models(
    method: str, num_drafts: int, num_tokens: int, is_right: bool
) -> None:
    """Any other number is refused when the configuration is read, and so are guesses that are too long."""
    drafts = [msgspec.to_builtins(draft_config(str(number))) for number in range(num_drafts)]
    tree = {"method": method, "num_tokens": num_tokens, "drafts": drafts}

    if is_right:
        assert len(msgspec.convert(tree, SpeculativeConfig).drafts) == num_drafts
    else:
        with pytest.raises(msgspec.ValidationError, match=f"cannot have {num_drafts} draft|from 1 to 16"):
            msgspec.convert(tree, SpeculativeConfig)


def test_without_the_key_only_predictions_are_guessed() -> None:
    """A request that predicts nothing is not even considered."""
    speculation = guessing(model_config())

    assert speculation is not None
    assert wish(speculation, predicted_ids=[]) == 0
    assert wish(speculation, predicted_ids=[4, 5, 6]) > 0


def test_ngrams_are_guessed_for_every_request() -> None:
    """As many tokens as the configuration says at most."""
    speculation = guessing(replace(model_config(), speculative=NGRAM))

    assert speculation is not None
    assert 0 < wish(speculation, predicted_ids=[]) <= 3


def test_a_model_that_cannot_verify_guesses_runs_without(caplog: pytest.LogCaptureFixture) -> None:
    """The log says so where the spec asked for guesses, and only there."""
    plain = LawModel(can_chunk=False)

    assert guessing(model_config(), plain) is None
    assert not caplog.records
    assert guessing(replace(model_config(), speculative=NGRAM), plain) is None
    assert [record.message for record in caplog.records] == [
        "cannot verify several tokens at once, so nothing is guessed"
    ]


@pytest.mark.parametrize("names", [["stdlib-drafter"], ["stdlib-drafter", "stdlib-drafter-narrow"]])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trained_models_guess_the_sample_model_s_text(names: list[str], temperature: float) -> None:
    """The same text as without guesses, of which a good part was right."""
    expected, _ = completed(sample_config(), [], temperature)

    found, model = completed(sample_config(*names), [SAMPLES / name for name in names], temperature)

    assert found == expected
    stats = model._engine.stats
    assert stats.accepted >= 10


def test_a_draft_model_with_other_tokens_is_refused(tmp_path: Path) -> None:
    """It would guess nonsense: by name, before the model is said to be ready."""
    folder = tmp_path / "stdlib-drafter"
    shutil.copytree(SAMPLES / "stdlib-drafter", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:100]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")

    with pytest.raises(ConfigError, match="`stdlib-drafter`: has other tokens than the model that it guesses for"):
        completed(sample_config("stdlib-drafter"), [folder], 0.0)


def sample_config(*names: str) -> ModelConfig:
    """The sample model, with trained drafters."""
    return replace(drafted(*names) if names else model_config("large"), id="stdlib-coder")


def completed(config: ModelConfig, draft_paths: list[Path], temperature: float) -> tuple[str, TextGenerationModel]:
    """A completion of a little code, and the model that wrote it."""
    model = load_served_model(config, sizes(), SAMPLES / "stdlib-coder", draft_paths=draft_paths)
    assert isinstance(model, TextGenerationModel)
    # Whether it pays is a matter of the machine.
    model._engine._speculation._is_always = True
    params = GenerationParams(max_tokens=48, temperature=temperature, seed=5)
    prompt = "import os\n\n\nclass Reader:\n    def __init__(self, "
    model.add(model.prepare(GenerateRequest(request_id="r", model=config.id, prompt=prompt, params=params)))
    text = ""
    while model.has_work:
        text += "".join(reply.text for reply in model.step() if isinstance(reply, TextDelta))
    return text, model


def test_a_draft_model_runs_where_the_other_one_does() -> None:
    """It has the device of the model that it guesses for, and weights of its own."""
    config = replace(drafted("small"), device="cuda:1")

    (draft,) = draft_models(config)

    assert (draft.id, draft.device, draft.source) == ("small", "cuda:1", FolderSource(folder="small"))
    assert draft_models(model_config()) == []


def test_what_is_planned_includes_draft_models() -> None:
    """A worker refuses at start what can never fit."""
    config = replace(drafted("small"), weight_bytes=100, sequence_kv_bytes=10)
    speculative = SpeculativeConfig(method="draft", num_tokens=4, drafts=(draft_config("small", weight_bytes=30),))

    assert planned_bytes(config) == 110
    assert planned_bytes(replace(config, speculative=speculative)) == 140


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoints of three sizes."""
    monkeypatch.setenv("FLASHGEN_STORE", str(tmp_path / "store"))
    for number, name in enumerate(("large", "small", "tiny")):
        tiny_module("llama", seed=number).save_pretrained(tmp_path / name)
    return tmp_path


def test_draft_models_are_measured_with_the_model(folder: Path) -> None:
    """Weights, buffers, and a KV cache with as many blocks: with equal shapes everything is there three times."""
    alone = measure_model(model_config("large"), sizes(), folder / "large")

    found = measure_model(drafted("small", "tiny"), sizes(), folder / "large", [folder / "small", folder / "tiny"])

    assert found == type(alone)(*(3 * part for part in alone))


def test_a_draft_model_must_generate_text(folder: Path) -> None:
    """An encoder cannot guess, which is said before anything is loaded."""
    (folder / "small" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")

    with pytest.raises(WeightsError, match="does not serve the task `text-generation`"):
        measure_model(drafted("small"), sizes(), folder / "large", [folder / "small"])


def test_a_library_finds_draft_models_with_the_model(folder: Path) -> None:
    """Their files are read with its own, and what is missing of them is missing of the model."""
    config = drafted("small")
    library = CheckpointLibrary(server_config(config), folder)
    access = WeightAccess(store=Store(folder / "store"))

    path = library.locate(config)

    assert path == folder / "large"
    assert library.weight_files(config, path) == (
        *weight_files(config, folder / "large", access),
        *weight_files(draft_models(config)[0], folder / "small", access),
    )
    assert library.measure(config, path) == measure_model(
        config, server_config(config).engine, folder / "large", [folder / "small"]
    )
    with pytest.raises(WeightsError, match="no such folder"):
        library.locate(drafted("missing"))


def test_a_model_is_on_the_disk_with_its_draft_models(folder: Path) -> None:
    """One that is still to be fetched is fetched in the background, and so are its draft models."""
    hub = replace(draft_config("small"), source=HubSource(repository="owner/small", revision=None))
    config = replace(model_config("large"), speculative=SpeculativeConfig(method="draft", num_tokens=4, drafts=(hub,)))
    library = CheckpointLibrary(server_config(config), folder)

    assert library.is_on_disk(drafted("small"))
    assert not library.is_on_disk(config)
