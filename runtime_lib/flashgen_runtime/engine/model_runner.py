"""Runs the model: a batch becomes the logits of the rows to sample. Leaves scheduling and sampling to others."""

from typing import Any

import torch

from flashgen_runtime.engine.attention import DECODER_ATTENTION, UnsupportedAttentionError, attending
from flashgen_runtime.engine.batch import Batch
from flashgen_runtime.engine.kv_cache import KVCache, LayerShape
from flashgen_runtime.engine.paged_attention import PagedAttention
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.quiet import quiet_transformers

# These choose their frequencies by the longest position of the whole forward pass, so that one request would change
# another's result.
BATCH_WIDE_ROPE = frozenset({"dynamic", "longrope"})


class ModelRunner:
    """A transformers model class on flat batches; each call of `forward` is one forward pass."""

    def __init__(self, model: LoadedModel, cache: KVCache) -> None:
        self._model = model
        self._cache = cache
        self.num_forward_passes = 0

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Stores the batch's keys and values in the cache; returns [R, V], float32, device."""
        self.num_forward_passes += 1
        with attending(PagedAttention(self._cache, batch, self._model.dtype)):
            output = self._model.module(
                input_ids=batch.input_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.sample_rows,
            )
        logits: torch.Tensor = output.logits[0]
        return logits.float()


@torch.inference_mode()
def take_over_attention(model: LoadedModel) -> list[LayerShape]:
    """Makes a model attend through us; returns what each layer will store, seen in a forward pass of one token.

    So the shapes are those that the model class really hands over, and a class whose attention does not come to us is
    found before a request is. Raises `WeightsError` for a model that cannot run on flat batches.
    """
    _refuse_batch_wide_rope(model)
    module: Any = model.module
    with quiet_transformers():
        module.set_attn_implementation(DECODER_ATTENTION)
    recorder = _ShapeRecorder()
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    try:
        with attending(recorder):
            module(input_ids=token, position_ids=token, use_cache=False, logits_to_keep=1)
    except UnsupportedAttentionError as error:
        raise _unsupported(model, str(error)) from error
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(recorder.layers) != list(range(num_layers)):
        problem = f"attention outside of transformers' interface in {num_layers - len(recorder.layers)} layers"
        raise _unsupported(model, problem)
    return [recorder.layers[layer] for layer in range(num_layers)]


class _ShapeRecorder:
    """An `AttentionContext` that notes what it is given and answers with zeros."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}

    def attend(
        self,
        layer: int | None,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,  # noqa: ARG002  # the interface's
        sliding_window: int | None,  # noqa: ARG002  # the interface's
    ) -> torch.Tensor:
        if layer is not None:
            self.layers[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])


def _refuse_batch_wide_rope(model: LoadedModel) -> None:
    parameters: dict[str, Any] = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    # One set of parameters, or one per kind of layer.
    sets = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    for rope_type in BATCH_WIDE_ROPE.intersection(each.get("rope_type", "default") for each in sets):
        raise _unsupported(model, f"rotary embeddings of type `{rope_type}`")


def _unsupported(model: LoadedModel, problem: str) -> WeightsError:
    name = type(model.module).__name__
    return WeightsError(model.path / "config.json", f"`{name}` is not supported yet: {problem}")
