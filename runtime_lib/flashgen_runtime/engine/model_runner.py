"""The paged path: a transformers class on flat batches, attending over our paged KV cache."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch

from flashgen_runtime.config import Quantization
from flashgen_runtime.engine.attention import (
    DECODER_ATTENTION,
    AttentionContext,
    UnsupportedAttentionError,
    attending,
)
from flashgen_runtime.engine.batch import Batch
from flashgen_runtime.engine.causal_model import ModelDescription
from flashgen_runtime.engine.kernel_cache import (
    FORMATS,
    KernelAttention,
    KernelCache,
    bytes_per_token,
    takes_head_sizes,
)
from flashgen_runtime.engine.kv_cache import KVCache, LayerShape
from flashgen_runtime.engine.packers import Packer
from flashgen_runtime.engine.paged_attention import PagedAttention
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.surgery import SurgeryReport, operate
from flashgen_runtime.errors import ConfigError
from flashgen_runtime.kernels.kv_layer import KVFormat
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.quiet import quiet_transformers

# These choose their frequencies by the longest position of the whole forward pass, so that one request would change
# another's result.
BATCH_WIDE_ROPE = frozenset({"dynamic", "longrope"})


class UnsupportedModelError(NotImplementedError):
    """A model class does not run on flat batches; the message says why."""


class PagedModel:
    """Implements `CausalModel`. With kernels, the model's submodules are replaced by ours.

    Args:
        model: owned from now on; its submodules change.
        quantization: of the linear layers.
        kv_cache_dtype: "auto" stores keys and values in the model's dtype.
        path_reason: why the model does not take a faster path.
        with_kernels: `False` leaves the model as it is and attends in torch.
        packer: gives the packed layers; `None` makes them.
        can_be_invariant: `False` where what torch still computes of the class depends on the batch.

    Raises:
        UnsupportedModelError: the class does not run on flat batches.
        ConfigError: what is asked for needs kernels that there are not.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        quantization: Quantization | None = None,
        kv_cache_dtype: Literal["auto", "int8"] = "auto",
        path_reason: str = "",
        with_kernels: bool = True,
        can_be_invariant: bool = True,
        packer: Packer | None = None,
    ) -> None:
        self._model = model
        self._layers = take_over_attention(model)
        isa = current_isa() if with_kernels and model.device.type == "cpu" else None
        self._kv_format = _kv_format(model, self._layers, kv_cache_dtype=kv_cache_dtype, isa=isa)
        self._surgery: SurgeryReport | None = None
        if isa is not None:
            self._surgery = operate(model.module, dtype=model.dtype, quantization=quantization, packer=packer)
        elif quantization is not None:
            raise ConfigError("model.quantization", f"`{quantization}` needs kernels, which run on the cpu")
        # Torch's cache holds what the model computes in.
        self._cache_dtype = torch.float32 if self._surgery else model.dtype
        self._attention: Callable[[Batch], AttentionContext] | None = None
        self._cache: KernelCache | KVCache | None = None
        self.description = ModelDescription(
            path="paged",
            path_reason=path_reason,
            dtype=_name(model.dtype),
            quantization=quantization or model.precision,
            kv_cache_dtype=_name(self._kv_format.dtype if self._kv_format else self._cache_dtype),
            kernels=isa or "torch",
            is_batch_invariant=can_be_invariant
            and self._surgery is not None
            and self._surgery.is_complete
            and self._kv_format is not None,
        )

    @property
    def left_to_torch(self) -> list[str]:
        """Classes of the submodules that kernels did not replace; empty too where none were to be replaced."""
        return sorted(self._surgery.left) if self._surgery else []

    @property
    def vocab_size(self) -> int:
        module: Any = self._model.module
        size: int = module.get_input_embeddings().num_embeddings
        return size

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def layer_shapes(self) -> list[LayerShape]:
        return self._layers

    @property
    def block_bytes_per_token(self) -> int:
        if self._kv_format is not None:
            return bytes_per_token(self._layers, self._kv_format)
        return sum(layer.num_values for layer in self._layers) * self._cache_dtype.itemsize

    @property
    def can_chunk(self) -> bool:
        return True

    @property
    def can_share_blocks(self) -> bool:
        return True

    def allocate_cache(self, num_blocks: int, block_size: int) -> None:
        if self._kv_format is not None:
            cache = KernelCache(self._layers, num_blocks=num_blocks, block_size=block_size, kv_format=self._kv_format)
            self._cache, self._attention = cache, partial(KernelAttention, cache)
            return
        torch_cache = KVCache(
            self._layers, num_blocks=num_blocks, block_size=block_size, dtype=self._cache_dtype, device=self.device
        )
        self._cache, self._attention = torch_cache, partial(PagedAttention, torch_cache, dtype=self._cache_dtype)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        assert self._attention is not None, "the engine allocates the cache first"
        with attending(self._attention(batch)):
            output = self._model.module(
                input_ids=batch.input_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.sample_rows,
            )
        logits: torch.Tensor = output.logits[0]
        # Classes without `logits_to_keep` give all rows.
        if len(logits) != len(batch.sample_rows):
            logits = logits.index_select(0, batch.sample_rows)
        return logits.float()

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        assert self._cache is not None, "the engine allocates the cache first"
        self._cache.copy_blocks(pairs)

    def close(self) -> None:
        del self._model, self._cache, self._attention

    def forget(self, request: Request) -> None:
        """Nothing is kept beside the cache."""


@torch.inference_mode()
def take_over_attention(model: LoadedModel) -> list[LayerShape]:
    """Makes a model attend through us; returns what each layer will store, seen in a forward pass of one token.

    So the shapes are those that the model class really hands over, and a class whose attention does not come to us is
    found before a request is. Raises `UnsupportedModelError` for a model that cannot run on flat batches.
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
    except (UnsupportedAttentionError, TypeError) as error:
        raise UnsupportedModelError(str(error)) from error
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(recorder.layers) != list(range(num_layers)):
        missing = num_layers - len(recorder.layers)
        raise UnsupportedModelError(f"attention outside of transformers' interface in {missing} of {num_layers} layers")
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
        **_options: Any,
    ) -> torch.Tensor:
        if layer is not None:
            self.layers[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])


def _refuse_batch_wide_rope(model: LoadedModel) -> None:
    parameters: dict[str, Any] = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    # One set of parameters, or one per kind of layer.
    sets = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    for rope_type in sorted(BATCH_WIDE_ROPE.intersection(each.get("rope_type", "default") for each in sets)):
        raise UnsupportedModelError(f"rotary embeddings of type `{rope_type}`, which depend on the whole batch")


def _kv_format(
    model: LoadedModel, layers: list[LayerShape], *, kv_cache_dtype: Literal["auto", "int8"], isa: str | None
) -> KVFormat | None:
    """How the kernels' cache stores keys and values; `None` for torch's cache."""
    if isa is not None and takes_head_sizes(layers):
        return KVFormat.INT8 if kv_cache_dtype == "int8" else FORMATS[model.dtype]
    if kv_cache_dtype == "int8":
        reason = "kernels, which run on the cpu" if isa is None else "heads that the kernels take"
        raise ConfigError("engine.kv_cache.dtype", f"`int8` needs {reason}")
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
