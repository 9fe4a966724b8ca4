"""A whole text model from a folder: tokenizer, chat template, parameters and limits as the checkpoint says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from flashgen_runtime.config import FolderSource, ModelConfig, SpeculativeConfig
from flashgen_runtime.errors import ConfigError, RequestError, WeightsError
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.messages import EmbedRequest, GenerateRequest, GenerationParams, TextDelta
from flashgen_runtime.models.registry import load_served_model
from flashgen_runtime.models.text_generation import TextGenerationModel
from tests.quantized_checkpoints import gptq, write_quantized
from tests.runtime_models import sizes, tiny_module

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' ~ message.role) }}{% endif %}[{{ message.role }}] {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)

QUESTION = [{"role": "user", "content": "why?"}]


def save_tokenizer(folder: Path, *, chat_template: str | None = None) -> None:
    """Byte-level BPE without a merge: one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="A", eos_token="Z")
    wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probe finds out is kept apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny Llama with a byte tokenizer and a chat template."""
    folder = tmp_path / "tiny"
    tiny_module("llama").save_pretrained(folder)
    save_tokenizer(folder, chat_template=TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 12}))
    return folder


def load(checkpoint: Path, **fields: Any) -> TextGenerationModel:
    settings: dict[str, Any] = {
        "id": "tiny",
        "aliases": ("small",),
        "task": "text-generation",
        "source": FolderSource(folder=checkpoint.name),
        "dtype": "auto",
        "quantization": None,
        "device": "cpu",
        "max_context": None,
        "chat_template": None,
        "generation_params": GenerationParams(),
        "prefetch": (),
        "speculative": None,
        "weight_bytes": None,
        "sequence_kv_bytes": None,
    }
    model = load_served_model(ModelConfig(**{**settings, **fields}), sizes(), checkpoint)
    assert isinstance(model, TextGenerationModel)
    return model


def request_of(**fields: Any) -> GenerateRequest:
    return GenerateRequest(request_id="r", model="tiny", **fields)


def answer(model: TextGenerationModel, request: GenerateRequest) -> str:
    model.add(model.prepare(request))
    text = ""
    while model.has_work:
        text += "".join(delta.text for delta in model.step() if isinstance(delta, TextDelta))
    return text


def generated(checkpoint: Path, encoded: Any) -> str:
    """What transformers itself answers."""
    module = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    ids = torch.tensor([encoded])
    output = module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def test_status(checkpoint: Path) -> None:
    """Callers see names, dtype, context and where the chat template comes from."""
    status = load(checkpoint).status

    assert (status.id, status.aliases, status.dtype) == ("tiny", ("small",), "float32")
    assert (status.max_context, status.chat_template) == (512, "checkpoint")
    assert load(checkpoint, max_context=64).status.max_context == 64


def test_status_says_how_a_model_runs(checkpoint: Path) -> None:
    """Precision, path and kernels, as `/v1/models` shows them."""
    status = load(checkpoint, quantization="int8").status

    assert (status.path, status.path_reason) == ("native", "")
    assert (status.quantization, status.kv_cache_dtype) == ("int8", "float32")
    assert status.kernels == current_isa()


def test_guesses_change_no_text(checkpoint: Path) -> None:
    """A model with `speculative` answers as one without, and says who guesses; predictions need no configuration."""
    expected = answer(load(checkpoint), request_of(prompt="once upon"))
    ngram = load(checkpoint, speculative=SpeculativeConfig(method="ngram", num_tokens=4, drafts=()))

    assert (ngram.status.speculative, load(checkpoint).status.speculative) == ("ngram", "")
    assert answer(ngram, request_of(prompt="once upon")) == expected
    assert answer(ngram, request_of(prompt="once upon", prediction=expected)) == expected
    assert answer(load(checkpoint), request_of(prompt="once upon", prediction=expected)) == expected


def test_predictions_are_followed_without_configuration(checkpoint: Path) -> None:
    """A right prediction is guessed once a first step was measured."""
    params = GenerationParams(max_tokens=64)
    expected = answer(load(checkpoint), request_of(prompt="once upon", params=params))
    model = load(checkpoint, id="predicted")

    answer(model, request_of(prompt="once upon", params=params, prediction=expected))

    assert (REGISTRY.get_sample_value("flashgen_spec_decode_accepted_tokens_total", {"model": "predicted"}) or 0) > 0


def test_status_of_a_quantised_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """What the file is, and what became of it."""
    folder = tmp_path / "quantized"
    shutil.copytree(checkpoint, folder)
    write_quantized(checkpoint, folder, gptq())

    assert load(folder).status.quantization == "gptq int4 g32"
    assert load(folder, dtype="float32").status.quantization == "gptq int4 g32 as float32"


def test_context_of_a_paged_model(tmp_path: Path) -> None:
    """A family that calls its positions another name."""
    folder = tmp_path / "gpt2"
    tiny_module("gpt2").save_pretrained(folder)
    save_tokenizer(folder)

    status = load(folder).status

    assert (status.path, status.max_context) == ("paged", 512)


def test_metrics_show_what_the_engine_holds(checkpoint: Path) -> None:
    """Running requests and blocks show while a request runs, and are gone when it is aborted."""

    def shown(name: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"model": "gauged"})

    model = load(checkpoint, id="gauged")
    model.add(model.prepare(request_of(prompt="once upon")))
    model.step()

    # 4 MiB in blocks of 12,288 bytes.
    assert shown("flashgen_kv_blocks_total") == 341
    assert shown("flashgen_requests_running") == shown("flashgen_kv_blocks_used") == 1
    model.abort("r")
    assert shown("flashgen_requests_running") == shown("flashgen_kv_blocks_used") == 0


def test_text_equals_transformers(checkpoint: Path) -> None:
    """Prompt and conversation give transformers' own text, by the checkpoint's parameters."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    chat = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    model = load(checkpoint)

    assert answer(model, request_of(prompt="once upon")) == generated(checkpoint, tokenizer.encode("once upon"))
    assert answer(model, request_of(messages=QUESTION)) == generated(checkpoint, chat)


def test_template_of_the_spec_wins(checkpoint: Path) -> None:
    """A configured template replaces the checkpoint's; the special tokens are the tokenizer's."""
    model = load(checkpoint, chat_template="{{ eos_token }}{{ messages[0].content }}")

    assert model.status.chat_template == "spec"
    assert len(model.prepare(request_of(messages=QUESTION)).prompt_ids) == len("Zwhy?")


def test_no_template(checkpoint: Path) -> None:
    """A base model joins contents by newlines and says so in its status."""
    (checkpoint / "chat_template.jinja").unlink()
    model = load(checkpoint)

    assert model.status.chat_template == "none"
    assert len(model.prepare(request_of(messages=QUESTION * 2)).prompt_ids) == len("why?\nwhy?")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (TEMPLATE, "unknown role judge"),
        ("{{ messages[5].content }}", "messages"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_conversation_that_the_template_does_not_take(checkpoint: Path, template: str, problem: str) -> None:
    """What a template raises, or what its sandbox forbids, refuses the request by name."""
    model = load(checkpoint, chat_template=template)

    with pytest.raises(RequestError) as caught:
        model.prepare(request_of(messages=[{"role": "judge", "content": "guilty"}]))

    assert (caught.value.kind, caught.value.param) == ("invalid_request", "messages")
    assert problem in caught.value.message


def test_broken_template_is_found_at_start(checkpoint: Path) -> None:
    """A template that is not Jinja is a mistake of the configuration, with its line."""
    with pytest.raises(ConfigError, match=r"chat_template: line 2: "):
        load(checkpoint, chat_template="fine\n{% for %}")


def test_parameters_out_of_range_are_found_at_start(checkpoint: Path) -> None:
    """Defaults that would fail every request fail the start."""
    (checkpoint / "generation_config.json").write_text(json.dumps({"temperature": 9}))

    with pytest.raises(ConfigError, match="generation parameters: `temperature` must be between 0 and 2, found 9"):
        load(checkpoint)


def test_context_beyond_the_positions_is_refused(checkpoint: Path) -> None:
    """A context that the checkpoint has no positions for."""
    with pytest.raises(ConfigError, match="has positions for 512 tokens"):
        load(checkpoint, max_context=513)


def test_task_must_suit_the_checkpoint(checkpoint: Path) -> None:
    """A language model is no encoder."""
    with pytest.raises(WeightsError, match="type `llama` does not serve the task `feature-extraction`"):
        load(checkpoint, task="feature-extraction")


def test_broken_tokenizer_is_named(checkpoint: Path) -> None:
    """A tokenizer file that cannot be read."""
    (checkpoint / "tokenizer.json").write_text("{}")

    with pytest.raises(WeightsError, match="its tokenizer cannot be loaded"):
        load(checkpoint)


def test_weights_that_may_not_be_read_are_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another user's is no crash: the message names the file and who asked."""

    def refuse(self: Path, *_: Any, **__: Any) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", refuse)

    with pytest.raises(WeightsError, match=r"model\.safetensors: may not be read by the user with the id"):
        load(checkpoint)


def test_embeddings_are_refused(checkpoint: Path) -> None:
    """A language model gives no vectors."""
    with pytest.raises(RequestError, match="gives no embeddings"):
        load(checkpoint).prepare(EmbedRequest(request_id="r", model="tiny", inputs=["a"]))
