"""Loads fakes where a worker loads models."""

from collections.abc import Callable

from flashgen_runtime.config import ModelConfig, ServerConfig
from flashgen_runtime.messages import GenerationParams, ModelStatus
from flashgen_runtime.models.base import ServedModel
from flashgen_runtime.models.text_generation import TextGenerationModel
from flashgen_runtime.testing.embeddings import FakeEmbeddings
from flashgen_runtime.testing.engine import FakeEngine
from flashgen_runtime.testing.tokenizer import CharacterTokenizer
from flashgen_runtime.worker.model_manager import ModelManager

FAKE_MAX_CONTEXT = 4096

# In the place of a checkpoint's `generation_config.json`.
FAKE_PARAMS = GenerationParams(max_tokens=16)


def fake_manager(server: ServerConfig, *, delay_seconds: float = 0.0) -> ModelManager:
    """A server's models as fakes; `delay_seconds` is the duration of a step."""
    return ModelManager(server.models, fake_loader(server, delay_seconds=delay_seconds))


def fake_loader(server: ServerConfig, *, delay_seconds: float = 0.0) -> Callable[[ModelConfig], ServedModel]:
    """What `ModelManager` takes as `load`."""

    def load(model: ModelConfig) -> ServedModel:
        if model.task == "feature-extraction":
            return FakeEmbeddings(_status(model))
        engine = FakeEngine(
            max_context=model.max_context or FAKE_MAX_CONTEXT,
            max_num_seqs=server.engine.max_num_seqs,
            delay_seconds=delay_seconds,
        )
        return TextGenerationModel(
            _status(model),
            engine=engine,
            tokenizer=CharacterTokenizer(),
            sources=(FAKE_PARAMS, model.generation_params),
        )

    return load


def _status(model: ModelConfig) -> ModelStatus:
    """Fakes render no chat templates, they join contents by newlines; yet they say what the real model would."""
    return ModelStatus(
        id=model.id,
        aliases=model.aliases,
        task=model.task,
        dtype="float32" if model.dtype == "auto" else model.dtype,
        quantization=model.quantization or "",
        max_context=model.max_context or FAKE_MAX_CONTEXT,
        chat_template="none" if model.chat_template is None else "spec",
    )
