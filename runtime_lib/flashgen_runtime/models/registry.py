"""Loads a model with everything that serving it takes: one builder for each task."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashgen_runtime.config import EngineConfig, ModelConfig, Task
from flashgen_runtime.engine.encoder import Encoder
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.sampling_params import merge_params
from flashgen_runtime.errors import ConfigError, RequestError, WeightsError
from flashgen_runtime.loader import LoadedModel, load_model
from flashgen_runtime.loader.checkpoint import locate, read_eos_ids, read_generation_params
from flashgen_runtime.loader.materialize import is_encoder
from flashgen_runtime.loader.sentence_transformers import read_max_seq_length, read_pooling
from flashgen_runtime.loader.tokenizer import CheckpointTokenizer, load_tokenizer
from flashgen_runtime.messages import GenerationParams, ModelStatus
from flashgen_runtime.models.base import ServedModel
from flashgen_runtime.models.chat_template import find_chat_template
from flashgen_runtime.models.embeddings import EmbeddingsModel
from flashgen_runtime.models.text_generation import TextGenerationModel

# For positions without a limit of their own; the KV cache sets one then.
UNLIMITED = 1 << 31


def load_served_model(config: ModelConfig, engine: EngineConfig, models_folder: Path) -> ServedModel:
    """Locates, checks and loads a model; raises `WeightsError`, `DownloadError`, `ConfigError` or `DeviceError`."""
    path = locate(config.source, models_folder)
    try:
        model = load_model(path, dtype=config.dtype, device=config.device)
        return _BUILDERS[config.task](config, engine, model)
    except PermissionError as error:
        problem = f"may not be read by the user with the id {os.getuid()}"
        raise WeightsError(error.filename or path, problem) from error


def _text_generation(config: ModelConfig, engine_config: EngineConfig, model: LoadedModel) -> ServedModel:
    if is_encoder(model.config):
        raise _wrong_task(config, model)
    tokenizer = _tokenizer(model)
    engine = LLMEngine(
        model,
        tokenizer,
        sizes=engine_config,
        max_context=_max_context(config, _position_limit(model)),
        eos_ids=read_eos_ids(model.path),
    )
    template, origin = find_chat_template(tokenizer.tokenizer, config.chat_template)
    return TextGenerationModel(
        ModelStatus(
            id=config.id,
            aliases=config.aliases,
            task=config.task,
            dtype=_dtype_name(model),
            max_context=engine.max_context,
            chat_template=origin,
        ),
        engine=engine,
        tokenizer=tokenizer,
        chat_template=template,
        sources=_checked(config, read_generation_params(model.path), config.generation_params),
    )


def _embeddings(config: ModelConfig, engine_config: EngineConfig, model: LoadedModel) -> ServedModel:
    if not is_encoder(model.config):
        raise _wrong_task(config, model)
    limit = min(read_max_seq_length(model.path) or UNLIMITED, _position_limit(model))
    return EmbeddingsModel(
        ModelStatus(
            id=config.id,
            aliases=config.aliases,
            task=config.task,
            dtype=_dtype_name(model),
            max_context=_max_context(config, limit),
        ),
        encoder=Encoder(model, pooling=read_pooling(model.path)),
        tokenizer=_tokenizer(model),
        max_num_batched_tokens=engine_config.max_num_batched_tokens,
    )


_BUILDERS: dict[Task, Callable[[ModelConfig, EngineConfig, LoadedModel], ServedModel]] = {
    "text-generation": _text_generation,
    "feature-extraction": _embeddings,
}


def _tokenizer(model: LoadedModel) -> CheckpointTokenizer:
    module: Any = model.module
    return load_tokenizer(model.path, vocab_size=module.get_input_embeddings().num_embeddings)


def _position_limit(model: LoadedModel) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or UNLIMITED


def _max_context(config: ModelConfig, limit: int) -> int:
    """The configured context, which the checkpoint's limit must allow; else that limit."""
    if config.max_context is not None and config.max_context > limit:
        problem = f"`max_context` is {config.max_context}, but the checkpoint has positions for {limit} tokens"
        raise ConfigError(f"model `{config.id}`", problem)
    return config.max_context or limit


def _checked(config: ModelConfig, *sources: GenerationParams) -> tuple[GenerationParams, ...]:
    """The sources, if a request that adds nothing could run with them."""
    try:
        merge_params(*sources, room=1)
    except RequestError as error:
        raise ConfigError(f"model `{config.id}`", f"generation parameters: {error.message}") from error
    return sources


def _dtype_name(model: LoadedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _wrong_task(config: ModelConfig, model: LoadedModel) -> WeightsError:
    problem = f"a model of type `{model.config.model_type}` does not serve the task `{config.task}`"
    return WeightsError(model.path / "config.json", problem)
