"""Loads a model with everything that serving it takes: one builder for each task."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from flashgen_runtime import timings
from flashgen_runtime.config import EngineConfig, HubSource, ModelConfig, Task
from flashgen_runtime.engine.causal_model import ModelDescription
from flashgen_runtime.engine.encoder_paths import load_encoder
from flashgen_runtime.engine.kv_cache import kv_cache_blocks
from flashgen_runtime.engine.llm_engine import LLMEngine
from flashgen_runtime.engine.native_loading import prepared_path
from flashgen_runtime.engine.paths import load_causal_model, position_limit
from flashgen_runtime.engine.prepare import recipe_of
from flashgen_runtime.engine.sampling_params import check_vocab, merge_params
from flashgen_runtime.engine.sizes import context_limit, token_kv_bytes, weight_bytes, workspace_bytes
from flashgen_runtime.engine.speculative import Speculation
from flashgen_runtime.errors import ConfigError, RequestError, WeightsError
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.checkpoint import (
    is_encoder,
    locate_folder,
    read_eos_ids,
    read_generation_params,
    read_headers,
    read_json,
)
from flashgen_runtime.loader.sentence_transformers import read_max_seq_length
from flashgen_runtime.loader.tokenizer import CheckpointTokenizer, load_tokenizer
from flashgen_runtime.logs import fields
from flashgen_runtime.messages import GenerationParams, ModelStatus
from flashgen_runtime.models.base import ModelMemory, ServedModel
from flashgen_runtime.models.chat_template import find_chat_template
from flashgen_runtime.models.embeddings import EmbeddingsModel
from flashgen_runtime.models.speculation import draft_models, speculation_of
from flashgen_runtime.models.text_generation import TextGenerationModel

log = logging.getLogger(__name__)

# For positions without a limit of their own; the KV cache sets one then.
UNLIMITED = 1 << 31


def locate_model(config: ModelConfig, access: WeightAccess, models_folder: Path) -> Path:
    """The folder of a model's checkpoint, pulled into the store if it is one of the hub.

    Raises `WeightsError`, `DownloadError` or `StoreError`.
    """
    if isinstance(config.source, HubSource):
        return access.store.pull(config.source.repository, config.source.revision).path
    return locate_folder(config.source, models_folder)


def measure_model(
    config: ModelConfig, engine: EngineConfig, path: Path, draft_paths: Sequence[Path] = ()
) -> ModelMemory:
    """What a model will take with its draft models, from their configurations and headers.

    The KV caches of draft models have as many blocks as the model's own. Raises `WeightsError` or `ConfigError`.
    """
    models = list(zip([config, *draft_models(config)], [path, *draft_paths], strict=True))
    for model, folder in models:
        _check_task(folder, model.task)
    block_bytes, *draft_block_bytes = (
        engine.block_size * token_kv_bytes(folder, dtype=model.dtype, kv_cache_dtype=engine.kv_cache_dtype)
        for model, folder in models
    )
    max_context = config.max_context or context_limit(path)
    num_blocks = kv_cache_blocks(engine, max_context=max_context, block_bytes=block_bytes) if block_bytes else 0
    return ModelMemory(
        weight_bytes=sum(_counted_weights(model, folder) for model, folder in models),
        kv_cache_bytes=num_blocks * (block_bytes + sum(draft_block_bytes)),
        workspace_bytes=sum(workspace_bytes(folder, engine) for _, folder in models),
    )


def _counted_weights(config: ModelConfig, path: Path) -> int:
    """Bytes of one model's weights; says in the log where the compiler counted others."""
    counted = weight_bytes(path, dtype=config.dtype, quantization=config.quantization, device=config.device)
    if config.weight_bytes not in (None, counted):
        log.warning(
            "the checkpoint is not the one that the project was built for: build it again",
            extra=fields(model=config.id, weight_bytes=counted, planned=config.weight_bytes),
        )
    return counted


def weight_files(config: ModelConfig, path: Path, access: WeightAccess) -> tuple[Path, ...]:
    """The files that loading the model reads, those of its draft models aside."""
    recipe = recipe_of(path, dtype=config.dtype, quantization=config.quantization) if config.device == "cpu" else None
    prepared = prepared_path(recipe, access.store) if recipe is not None else None
    return (prepared,) if prepared is not None else tuple(header.path for header in read_headers(path))


def load_served_model(
    config: ModelConfig,
    engine: EngineConfig,
    path: Path,
    *,
    draft_paths: Sequence[Path] = (),
    access: WeightAccess | None = None,
) -> ServedModel:
    """Checks and loads the model whose checkpoint lies in `path`.

    Args:
        config: the model.
        engine: limits of batches and memory.
        path: as `locate_model` gave it.
        draft_paths: the same of its draft models.
        access: where prepared weights lie; `None` packs the checkpoint into private memory.

    Raises `WeightsError`, `ConfigError` or `DeviceError`.
    """
    try:
        _check_task(path, config.task)
        return _BUILDERS[config.task](config, engine, path, draft_paths, access)
    except PermissionError as error:
        problem = f"may not be read by the user with the id {os.getuid()}"
        raise WeightsError(error.filename or path, problem) from error


def _text_generation(
    config: ModelConfig,
    engine_config: EngineConfig,
    path: Path,
    draft_paths: Sequence[Path],
    access: WeightAccess | None,
) -> ServedModel:
    speculation: Speculation | None = None
    with timings.stage("weights"):
        model = load_causal_model(path, config, engine_config, access=access)
    try:
        tokenizer = _tokenizer(path, model.vocab_size, access)
        max_context = _max_context(config, position_limit(path, model) or UNLIMITED)
        with timings.stage("weights"):
            speculation = speculation_of(
                config,
                model,
                tokenizer=tokenizer,
                engine=engine_config,
                max_context=max_context,
                draft_paths=draft_paths,
                access=access,
            )
        engine = LLMEngine(
            model,
            tokenizer,
            sizes=engine_config,
            max_context=max_context,
            eos_ids=read_eos_ids(path),
            speculation=speculation,
        )
        template, origin = find_chat_template(tokenizer.tokenizer, config.chat_template)
        return TextGenerationModel(
            _status(
                config,
                model.description,
                max_context=engine.max_context,
                chat_template=origin,
                speculative=config.speculative.method if config.speculative and speculation else "",
            ),
            engine=engine,
            tokenizer=tokenizer,
            chat_template=template,
            sources=_checked(config, model.vocab_size, read_generation_params(path), config.generation_params),
        )
    except BaseException:
        model.close()
        if speculation is not None:
            speculation.close()
        raise


def _embeddings(
    config: ModelConfig,
    engine_config: EngineConfig,
    path: Path,
    _draft_paths: Sequence[Path],
    access: WeightAccess | None,
) -> ServedModel:
    with timings.stage("weights"):
        encoder = load_encoder(path, config, engine_config, access=access)
    try:
        limit = min(read_max_seq_length(path) or UNLIMITED, encoder.num_positions or UNLIMITED)
        return EmbeddingsModel(
            _status(config, encoder.description, max_context=_max_context(config, limit)),
            encoder=encoder,
            tokenizer=_tokenizer(path, encoder.vocab_size, access),
            max_num_batched_tokens=engine_config.max_num_batched_tokens,
            max_wait_seconds=engine_config.max_wait_seconds,
        )
    except BaseException:
        encoder.close()
        raise


def _tokenizer(path: Path, vocab_size: int, access: WeightAccess | None) -> CheckpointTokenizer:
    with timings.stage("tokenizer"):
        return load_tokenizer(path, vocab_size=vocab_size, store=access.store.root if access is not None else None)


_Builder = Callable[[ModelConfig, EngineConfig, Path, Sequence[Path], WeightAccess | None], ServedModel]

_BUILDERS: dict[Task, _Builder] = {
    "text-generation": _text_generation,
    "feature-extraction": _embeddings,
}


def _status(
    config: ModelConfig,
    description: ModelDescription,
    *,
    max_context: int,
    chat_template: Literal["spec", "checkpoint", "none"] = "none",
    speculative: str = "",
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
        speculative=speculative,
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
