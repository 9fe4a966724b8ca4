"""Who guesses for a model, as its configuration says, and what draft models are to the rest of the worker."""

import logging
from collections.abc import Sequence
from pathlib import Path

from flashgen_runtime.config import EngineConfig, ModelConfig
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.llm_engine import can_speculate
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.speculative import NgramProposer, PredictionProposer, Speculation
from flashgen_runtime.errors import ConfigError
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.logs import fields
from flashgen_runtime.messages import GenerationParams

log = logging.getLogger(__name__)

# Of what a request predicts, where the model guesses nothing itself: a prediction that is followed is mostly right.
NUM_PREDICTED_TOKENS = 8


def draft_models(config: ModelConfig) -> list[ModelConfig]:
    """The draft models of a model, each as a model of its own on the same device."""
    return [
        ModelConfig(
            id=draft.id,
            aliases=(),
            task="text-generation",
            source=draft.source,
            dtype=draft.dtype,
            quantization=draft.quantization,
            device=config.device,
            max_context=None,
            chat_template=None,
            generation_params=GenerationParams(),
            prefetch=(),
            speculative=None,
            weight_bytes=draft.weight_bytes,
            sequence_kv_bytes=None,
        )
        for draft in config.drafts
    ]


def speculation_of(
    config: ModelConfig,
    model: CausalModel,
    *,
    engine: EngineConfig,
    draft_paths: Sequence[Path],
    access: WeightAccess | None,
) -> Speculation | None:
    """Who guesses for a loaded model; `None` where it cannot verify guesses, which is logged if some were asked for.

    Args:
        config: the model.
        model: the same, loaded.
        engine: limits of batches and memory, which hold for draft models too.
        draft_paths: folders of the draft models' checkpoints.
        access: where prepared weights lie; `None` packs checkpoints into private memory.

    Raises:
        WeightsError: a draft model's checkpoint is broken.
        ConfigError: a draft model does not fit the one that it guesses for.
    """
    del engine, draft_paths, access
    settings = config.speculative
    if not can_speculate(model):
        if settings is not None:
            description = model.description
            where = {"model": config.id, "path": description.path, "kernels": description.kernels}
            log.warning("cannot verify several tokens at once, so nothing is guessed", extra=fields(**where))
        return None
    if settings is None:
        return _SpeculationOnPredictions([PredictionProposer()], num_tokens=NUM_PREDICTED_TOKENS)
    if settings.method == "ngram":
        return Speculation([PredictionProposer(), NgramProposer()], num_tokens=settings.num_tokens)
    problem = f"the method `{settings.method}` cannot be served yet: `ngram` can"
    raise ConfigError(f"model `{config.id}`: speculative", problem)


class _SpeculationOnPredictions(Speculation):
    """Considers only requests with a prediction, so that all others cost nothing."""

    def wish(self, request: Request, *, max_tokens: int, max_rows: int, num_running: int) -> int:
        if not request.predicted_ids:
            return 0
        return super().wish(request, max_tokens=max_tokens, max_rows=max_rows, num_running=num_running)
