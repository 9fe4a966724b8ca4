"""Loads fakes where a worker loads models."""

from collections.abc import Callable
from pathlib import Path

from flashgen_runtime.config import ModelConfig, ServerConfig
from flashgen_runtime.messages import GenerationParams, ModelStatus
from flashgen_runtime.models.base import ModelMemory, ServedModel
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
    return ModelManager(server, FakeLibrary(server, delay_seconds=delay_seconds))


class FakeLibrary:
    """A `Library` of fakes, which take no memory and no time to load.

    Args:
        server: whose models they are.
        delay_seconds: how long a step takes.
        load: makes a model in the place of a fake.
        memory: what a model is said to take.
    """

    def __init__(
        self,
        server: ServerConfig,
        *,
        delay_seconds: float = 0.0,
        load: Callable[[ModelConfig], ServedModel] | None = None,
        memory: Callable[[ModelConfig], ModelMemory] = lambda _: ModelMemory(0, 0, 0),
    ) -> None:
        self._server = server
        self._delay_seconds = delay_seconds
        self._load = load or self._fake
        self._memory = memory

    def is_on_disk(self, config: ModelConfig) -> bool:  # noqa: ARG002  # there are no files
        return True

    def locate(self, config: ModelConfig) -> Path:
        return Path(config.id)

    def measure(self, config: ModelConfig, path: Path) -> ModelMemory:  # noqa: ARG002
        return self._memory(config)

    def weight_files(self, config: ModelConfig, path: Path) -> tuple[Path, ...]:  # noqa: ARG002
        return ()

    def load(self, config: ModelConfig, path: Path) -> ServedModel:  # noqa: ARG002
        return self._load(config)

    def _fake(self, model: ModelConfig) -> ServedModel:
        if model.task == "feature-extraction":
            return FakeEmbeddings(_status(model))
        engine = FakeEngine(
            max_context=model.max_context or FAKE_MAX_CONTEXT,
            max_num_seqs=self._server.engine.max_num_seqs,
            delay_seconds=self._delay_seconds,
        )
        return TextGenerationModel(
            _status(model),
            engine=engine,
            tokenizer=CharacterTokenizer(),
            sources=(FAKE_PARAMS, model.generation_params),
        )


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
        speculative=model.speculative.method if model.speculative is not None else "",
    )
