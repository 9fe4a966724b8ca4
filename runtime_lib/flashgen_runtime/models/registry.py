"""Loads a model with everything that serving it takes: one builder for each task."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from flashgen_runtime.config import EngineConfig, ModelConfig, Task
from flashgen_runtime.engine.causal_model import ModelDescription
from flashgen_runtime.engine.encoder_paths import load_encoder
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.paths import load_causal_model, position_limit
from flashgen_runtime.engine.sampling_params import check_vocab, merge_params
from flashgen_runtime.errors import ConfigError, RequestError, WeightsError
from flashgen_runtime.loader.checkpoint import is_encoder, locate, read_eos_ids, read_generation_params, read_json
from flashgen_runtime.loader.sentence_transformers import read_max_seq_length
from flashgen_runtime.loader.tokenizer import load_tokenizer
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
        _check_task(path, config.task)
        return _BUILDERS[config.task](config, engine, path)
    except PermissionError as error:
        problem = f"may not be read by the user with the id {os.getuid()}"
        raise WeightsError(error.filename or path, problem) from error


def _text_generation(config: ModelConfig, engine_config: EngineConfig, path: Path) -> ServedModel:
    model = load_causal_model(path, config, engine_config)
    tokenizer = load_tokenizer(path, vocab_size=model.vocab_size)
    engine = LLMEngine(
        model,
        tokenizer,
        sizes=engine_config,
        max_context=_max_context(config, position_limit(path, model) or UNLIMITED),
        eos_ids=read_eos_ids(path),
    )
    template, origin = find_chat_template(tokenizer.tokenizer, config.chat_template)
    return TextGenerationModel(
        _status(config, model.description, max_context=engine.max_context, chat_template=origin),
        engine=engine,
        tokenizer=tokenizer,
        chat_template=template,
        sources=_checked(config, model.vocab_size, read_generation_params(path), config.generation_params),
    )


def _embeddings(config: ModelConfig, engine_config: EngineConfig, path: Path) -> ServedModel:
    encoder = load_encoder(path, config, engine_config)
    limit = min(read_max_seq_length(path) or UNLIMITED, encoder.num_positions or UNLIMITED)
    return EmbeddingsModel(
        _status(config, encoder.description, max_context=_max_context(config, limit)),
        encoder=encoder,
        tokenizer=load_tokenizer(path, vocab_size=encoder.vocab_size),
        max_num_batched_tokens=engine_config.max_num_batched_tokens,
        max_wait_seconds=engine_config.max_wait_seconds,
    )


_BUILDERS: dict[Task, Callable[[ModelConfig, EngineConfig, Path], ServedModel]] = {
    "text-generation": _text_generation,
    "feature-extraction": _embeddings,
}


def _status(
    config: ModelConfig,
    description: ModelDescription,
    *,
    max_context: int,
    chat_template: Literal["spec", "checkpoint", "none"] = "none",
) -> ModelStatus:
    return ModelStatus(
        id=config.id,
        aliases=config.aliases,
        task=config.task,
        dtype=description.dtype,
        max_context=max_context,
        chat_template=chat_template,
        quantization=description.quantization,
        path=description.path,
        path_reason=description.path_reason,
        kv_cache_dtype=description.kv_cache_dtype,
        kernels=description.kernels,
    )


def _check_task(path: Path, task: Task) -> None:
    file = path / "config.json"
    model_type = read_json(file).get("model_type")
    if is_encoder(model_type) != (task == "feature-extraction"):
        raise WeightsError(file, f"a model of type `{model_type}` does not serve the task `{task}`")


def _max_context(config: ModelConfig, limit: int) -> int:
    """The configured context, which the checkpoint's limit must allow; else that limit."""
    if config.max_context is not None and config.max_context > limit:
        problem = f"`max_context` is {config.max_context}, but the checkpoint has positions for {limit} tokens"
        raise ConfigError(f"model `{config.id}`", problem)
    return config.max_context or limit


def _checked(config: ModelConfig, vocab_size: int, *sources: GenerationParams) -> tuple[GenerationParams, ...]:
    """The sources, if a request that adds nothing could run with them."""
    try:
        check_vocab(merge_params(*sources, GenerationParams(), room=1), vocab_size)
    except RequestError as error:
        raise ConfigError(f"model `{config.id}`", f"generation parameters: {error.message}") from error
    return sources
