"""Who guesses for a model, as its configuration says, and what draft models are to the rest of the worker."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from flashgen_runtime.config import EngineConfig, ModelConfig
from flashgen_runtime.engine.causal_model import CausalModel
from flashgen_runtime.engine.drafting import DraftProposer
from flashgen_runtime.engine.kv_cache import kv_cache_blocks
from flashgen_runtime.engine.llm_engine import can_speculate
from flashgen_runtime.engine.paths import load_causal_model, position_limit
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.speculative import NgramProposer, PredictionProposer, Proposer, Speculation
from flashgen_runtime.engine.tokenizer import Tokenizer
from flashgen_runtime.errors import ConfigError
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.tokenizer import load_tokenizer
from flashgen_runtime.logs import fields
from flashgen_runtime.messages import GenerationParams

log = logging.getLogger(__name__)

# What two tokenizers have to cut alike to be taken for the same.
_TEXTS = ("Hello, world! It's 2024: 3.14 x 10^7.", "  def f(x):\n    return x**2\n", "naïve żółw 中文字符 🐢")

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
    tokenizer: Tokenizer,
    engine: EngineConfig,
    max_context: int,
    draft_paths: Sequence[Path],
    access: WeightAccess | None,
) -> Speculation | None:
    """Who guesses for a loaded model; `None` where it cannot verify guesses, which is logged if some were asked for.

    Args:
        config: the model.
        model: the same, loaded.
        tokenizer: the model's.
        engine: limits of batches and memory, which hold for draft models too.
        max_context: the model's.
        draft_paths: folders of the draft models' checkpoints.
        access: where prepared weights lie; `None` packs checkpoints into private memory.

    Raises:
        WeightsError: a draft model's checkpoint is broken.
        ConfigError: a draft model does not fit the one that it guesses for.
    """
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
    block_bytes = engine.block_size * model.block_bytes_per_token
    num_blocks = kv_cache_blocks(engine, max_context=max_context, block_bytes=block_bytes)
    with ExitStack() as unless_all_load:
        drafters: list[Proposer] = []
        for draft, path in zip(draft_models(config), draft_paths, strict=True):
            drafters.append(_drafter(draft, path, model, tokenizer, engine, num_blocks, max_context, access))
            unless_all_load.callback(drafters[-1].close)
        unless_all_load.pop_all()
    is_tree = settings.method == "tree"
    # In a tree a prediction would take rows of every request, also where there is none.
    return Speculation(
        drafters if is_tree else [PredictionProposer(), *drafters], num_tokens=settings.num_tokens, is_tree=is_tree
    )


def _drafter(
    draft: ModelConfig,
    path: Path,
    model: CausalModel,
    tokenizer: Tokenizer,
    engine: EngineConfig,
    num_blocks: int,
    max_context: int,
    access: WeightAccess | None,
) -> DraftProposer:
    where = f"draft model `{draft.id}`"
    loaded = load_causal_model(path, draft, engine, access=access)
    try:
        if not loaded.can_chunk:
            raise ConfigError(where, f"runs on the path `{loaded.description.path}`, where it cannot guess ahead")
        own = load_tokenizer(path, vocab_size=loaded.vocab_size, store=access.store.root if access else None)
        if any(_ids(own, text) != _ids(tokenizer, text) for text in _TEXTS):
            raise ConfigError(where, "has other tokens than the model that it guesses for")
        return DraftProposer(
            loaded,
            vocab_size=model.vocab_size,
            num_blocks=num_blocks,
            block_size=engine.block_size,
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_context=min(max_context, position_limit(path, loaded) or max_context),
        )
    except BaseException:
        loaded.close()
        raise


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


class _SpeculationOnPredictions(Speculation):
    """Considers only requests with a prediction, so that all others cost nothing."""

    def wish(self, request: Request, *, max_tokens: int, max_rows: int, num_running: int) -> int:
        if not request.predicted_ids:
            return 0
        return super().wish(request, max_tokens=max_tokens, max_rows=max_rows, num_running=num_running)
