"""Our own dense decoder: Llama, Mistral, Qwen2 and Qwen3 as a program of kernels, one call a step. No transformers.

The configuration is read in `native_config`, weights are packed in `native_weights`; here they become operations.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from flashgen_runtime import timings
from flashgen_runtime.config import DType, Quantization
from flashgen_runtime.engine.batch import Batch
from flashgen_runtime.engine.causal_model import ModelDescription
from flashgen_runtime.engine.kernel_cache import FORMATS, KernelCache, bytes_per_token
from flashgen_runtime.engine.kv_cache import LayerShape
from flashgen_runtime.engine.native_config import (
    DecoderConfig,
    UnsupportedConfigError,
    asked_dtype,
    dtype_name,
    parse_config,
)
from flashgen_runtime.engine.native_loading import FoundWeights, Preparation, Recipe, find_weights
from flashgen_runtime.engine.native_weights import (
    EMBEDDING,
    HEAD,
    DecoderWeights,
    LayerWeights,
    build_weights,
    ignored_tensors,
    linear_layers,
    tensor_shapes,
)
from flashgen_runtime.engine.quantized_layers import find_quantized, layer_kinds
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.streamed_program import StreamedProgram
from flashgen_runtime.engine.weight_source import has_own_head
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.kernels.paged_attention import KVFormat, KVLayer
from flashgen_runtime.kernels.program import Program, Rows
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.checkpoint import read_json
from flashgen_runtime.loader.tensors import CheckpointTensors
from flashgen_runtime.logs import fields

log = logging.getLogger(__name__)


def load_native(
    path: Path,
    *,
    dtype: DType,
    quantization: Quantization | None,
    kv_cache_dtype: Literal["auto", "int8"],
    max_num_batched_tokens: int,
    access: WeightAccess | None = None,
) -> "NativeDecoder":
    """Loads a checkpoint whose `config.json` `native_config.reason_against` has nothing against.

    Args:
        path: the checkpoint's folder.
        dtype: of the weights that are not quantised; "auto" keeps the checkpoint's own.
        quantization: of the linear layers. The head is never below int8; the embedding stays in the dtype.
        kv_cache_dtype: "auto" is the dtype.
        max_num_batched_tokens: tokens of the largest batch.
        access: where prepared weights lie; `None` packs the checkpoint into private memory.

    Raises:
        WeightsError: a file is missing or broken, or its tensors are not those of the configuration.
        ConfigError: the checkpoint is quantised in another way than `quantization`.
    """
    with timings.stage("skeleton"):
        config, recipe = decoder_recipe(path, dtype=dtype, quantization=quantization)
    _log_floats(recipe)
    return NativeDecoder(
        config,
        find_weights(recipe, access),
        dtype=recipe.dtype,
        precision=recipe.precision,
        kv_format=KVFormat.INT8 if kv_cache_dtype == "int8" else FORMATS[recipe.dtype],
        max_num_batched_tokens=max_num_batched_tokens,
    )


def decoder_recipe(
    path: Path, *, dtype: DType, quantization: Quantization | None
) -> tuple[DecoderConfig, Recipe[DecoderWeights]]:
    """What a checkpoint's configuration and headers say; raises `WeightsError` as `load_native`."""
    tree = read_json(path / "config.json")
    try:
        config = parse_config(tree)
    except UnsupportedConfigError as error:
        raise WeightsError(path / "config.json", f"is not run natively: {error}") from error
    tensors = CheckpointTensors(path)
    found = find_quantized(
        path,
        tree,
        tensors,
        shapes=tensor_shapes(config),
        fused=linear_layers(config),
        dtype=dtype,
        quantization=quantization,
    )
    tensors.expect(found.shapes, quantized=found.stored, ignored=(*ignored_tensors(config), *found.ignored))
    if found.quantized is not None:
        quantization = None
    weight_dtype = asked_dtype(tree, dtype) or tensors.dtype(f"{EMBEDDING}.weight")
    build = partial(
        build_weights,
        config=config,
        dtype=weight_dtype,
        quantization=quantization,
        has_own_head=has_own_head(
            tensors, head=f"{HEAD}.weight", embedding=f"{EMBEDDING}.weight", is_tied=config.is_head_tied
        ),
    )
    recipe = Recipe(
        path=path,
        tensors=tensors,
        dtype=weight_dtype,
        quantization=quantization,
        quantized=found.quantized,
        build=build,
    )
    return config, recipe


def _log_floats(recipe: Recipe[DecoderWeights]) -> None:
    """Says which quantised layers run as floats, and why."""
    floats = recipe.quantized.floats() if recipe.quantized is not None else {}
    for reason in dict.fromkeys(floats.values()):
        names = layer_kinds(name for name, why in floats.items() if why == reason)
        log.info("quantised layers run as floats", extra=fields(path=str(recipe.path), layers=names, reason=reason))


class NativeDecoder:
    """A `CausalModel` on the CPU whose forward pass is one call of the kernels.

    While weights arrive, a forward pass waits for each layer's before it computes the layer. Logits are overwritten by
    the next forward pass.
    """

    device = torch.device("cpu")
    can_chunk = True
    can_share_blocks = True

    def __init__(
        self,
        config: DecoderConfig,
        found: FoundWeights[DecoderWeights],
        *,
        dtype: torch.dtype,
        precision: str,
        kv_format: KVFormat,
        max_num_batched_tokens: int,
    ) -> None:
        self._config = config
        self._found = found
        self._dtype = dtype
        self._precision = precision
        self._kv_format = kv_format
        self._max_num_batched_tokens = max_num_batched_tokens
        self._cache: KernelCache | None = None
        self._streamed, self._logits = self._empty()

    @property
    def description(self) -> ModelDescription:
        isa = current_isa()
        return ModelDescription(
            path="native",
            path_reason="",
            dtype=dtype_name(self._dtype),
            quantization=self._precision,
            kv_cache_dtype=dtype_name(self._kv_format.dtype),
            kernels=isa or "torch",
            # Torch's matrix products depend on the number of rows.
            is_batch_invariant=isa is not None,
        )

    @property
    def vocab_size(self) -> int:
        return self._config.vocab_size

    @property
    def layer_shapes(self) -> list[LayerShape]:
        config = self._config
        return [LayerShape(config.num_kv_heads, config.head_size, config.head_size)] * config.num_layers

    @property
    def block_bytes_per_token(self) -> int:
        return bytes_per_token(self.layer_shapes, self._kv_format)

    @property
    def program(self) -> Program:
        """The step's operations, empty before `allocate_cache`; benchmarks ask it for its profile."""
        return self._streamed.program

    def allocate_cache(self, num_blocks: int, block_size: int) -> None:
        assert self._cache is None, "operations point into the first one"
        self._cache = KernelCache(
            self.layer_shapes, num_blocks=num_blocks, block_size=block_size, kv_format=self._kv_format
        )
        self._streamed, self._logits = self._build(self._cache)

    def forward(self, batch: Batch) -> torch.Tensor:
        if self._found.preparation is not None and self._found.preparation.is_done:
            self._take_prepared(self._found.preparation)
        self._streamed.run(batch)
        return self._logits[: len(batch.sample_rows)]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        assert self._cache is not None, "blocks are copied between forward passes"
        self._cache.copy_blocks(pairs)

    def forget(self, request: Request) -> None:
        """Nothing lies outside of the blocks."""

    def close(self) -> None:
        """Gives back weights and cache; there are no forward passes afterwards."""
        if self._found.preparation is not None:
            self._found.preparation.close()
        self._streamed.close()
        self._cache = None
        self._streamed, self._logits = self._empty()
        del self._found

    def _take_prepared(self, preparation: Preparation[DecoderWeights]) -> None:
        """Goes on with weights in another layout, which give the same bits, and gives back the checkpoint's rows."""
        assert self._cache is not None, "there are forward passes"
        found = preparation.take()
        if found is None:
            self._found = self._found._replace(preparation=None)
            return
        self._found = found
        self._streamed, self._logits = self._build(self._cache)

    def _empty(self) -> "_Built":
        return _Built(StreamedProgram(Program(self._max_num_batched_tokens), None), torch.empty(0))

    def _build(self, cache: KernelCache) -> "_Built":
        streamed = StreamedProgram(Program(self._max_num_batched_tokens), self._found.stream)
        return _Built(streamed, _build(streamed, self._config, self._found.weights, cache.layers))


class _Built(NamedTuple):
    """A program, and where it leaves the logits of the sampled rows."""

    streamed: StreamedProgram
    logits: torch.Tensor


def _build(
    streamed: StreamedProgram, config: DecoderConfig, weights: DecoderWeights, layers: Sequence[KVLayer]
) -> torch.Tensor:
    """Adds all operations of a step; returns where the logits of the sampled rows will stand."""
    program = streamed.program
    builder = _DecoderBuilder(program, config)
    hidden = program.embed(weights.embedding, out=program.buffer(config.hidden_size))
    streamed.needs(weights.embedding_mark)
    for index, (layer, kv_layer) in enumerate(zip(weights.layers, layers, strict=True)):
        attended = builder.attention(hidden, layer, kv_layer, window=config.windows[index])
        if index == config.num_layers - 1:
            # What follows the last attention concerns sampled rows only; the others have left their keys and values.
            hidden, attended = program.select_sampled(hidden), program.select_sampled(attended)
        hidden = program.linears(attended, layer.output, out=hidden.values, is_added=True)
        hidden = builder.mlp(hidden, layer)
        streamed.needs(layer.mark)
    normed = program.rms_norm(hidden, weights.norm, eps=config.norm_eps, out=builder.normed)
    logits = program.linear(normed, weights.head, out=program.buffer(config.vocab_size), name="head").values
    streamed.needs(weights.head_mark)
    return logits


class _DecoderBuilder:
    """Adds layers to a program; all of them use the same buffers."""

    def __init__(self, program: Program, config: DecoderConfig) -> None:
        self._program = program
        self._config = config
        query_size, kv_size = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
        self.normed = program.buffer(config.hidden_size)
        self._queries_keys_values = program.buffer(query_size + 2 * kv_size)
        self._attended = program.buffer(query_size)
        self._gate_and_up = program.buffer(2 * config.intermediate_size)
        self._gated = program.buffer(config.intermediate_size)
        self._angles = program.rope_angles(config.rope.frequencies, factor=config.rope.factor)

    def attention(self, hidden: Rows, layer: LayerWeights, kv_layer: KVLayer, *, window: int | None) -> Rows:
        """What the tokens attend to, before the output projection."""
        program, config = self._program, self._config
        normed = program.rms_norm(hidden, layer.attention_norm, eps=config.norm_eps, out=self.normed)
        projected = program.linears(normed, layer.queries_keys_values, out=self._queries_keys_values)
        queries = program.rope_and_store(
            projected,
            kv_layer,
            angles=self._angles,
            num_heads=config.num_heads,
            query_norm=layer.query_norm,
            key_norm=layer.key_norm,
            norm_eps=config.norm_eps,
        )
        return program.attention(
            queries,
            kv_layer,
            num_heads=config.num_heads,
            scaling=config.head_size**-0.5,
            window=window,
            out=self._attended,
        )

    def mlp(self, hidden: Rows, layer: LayerWeights) -> Rows:
        program, config = self._program, self._config
        normed = program.rms_norm(hidden, layer.mlp_norm, eps=config.norm_eps, out=self.normed)
        projected = program.linears(normed, layer.gate_and_up, out=self._gate_and_up)
        gated = program.gated_activation(projected, config.activation, out=self._gated)
        return program.linears(gated, layer.down, out=hidden.values, is_added=True)
