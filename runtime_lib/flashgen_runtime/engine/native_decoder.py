"""Our own dense decoder: Llama, Mistral, Qwen2 and Qwen3 as a program of kernels, one call a step. No transformers.

The configuration is read in `native_config`, weights are packed in `native_weights`; here they become operations.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

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
from flashgen_runtime.engine.native_weights import DecoderWeights, LayerWeights, load_weights
from flashgen_runtime.engine.request import Request
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.kernels.paged_attention import KVFormat, KVLayer
from flashgen_runtime.kernels.program import Program, Rows
from flashgen_runtime.loader.checkpoint import read_json


def load_native(
    path: Path,
    *,
    dtype: DType,
    quantization: Quantization | None,
    kv_cache_dtype: Literal["auto", "int8"],
    max_num_batched_tokens: int,
) -> "NativeDecoder":
    """Loads a checkpoint whose `config.json` `native_config.reason_against` has nothing against.

    Args:
        path: the checkpoint's folder.
        dtype: of the weights that are not quantised; "auto" keeps the checkpoint's own.
        quantization: of the linear layers. The head is never below int8; the embedding stays in the dtype.
        kv_cache_dtype: "auto" is the dtype.
        max_num_batched_tokens: tokens of the largest batch.

    Raises:
        WeightsError: a file is missing or broken, or its tensors are not those of the configuration.
    """
    tree = read_json(path / "config.json")
    try:
        config = parse_config(tree)
    except UnsupportedConfigError as error:
        raise WeightsError(path / "config.json", f"is not run natively: {error}") from error
    weights, weight_dtype = load_weights(path, config, dtype=asked_dtype(tree, dtype), quantization=quantization)
    return NativeDecoder(
        config,
        weights,
        dtype=weight_dtype,
        quantization=quantization,
        kv_format=KVFormat.INT8 if kv_cache_dtype == "int8" else FORMATS[weight_dtype],
        max_num_batched_tokens=max_num_batched_tokens,
    )


class NativeDecoder:
    """A `CausalModel` on the CPU whose forward pass is one call of the kernels.

    Logits are overwritten by the next forward pass.
    """

    device = torch.device("cpu")
    can_chunk = True
    can_share_blocks = True

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        *,
        dtype: torch.dtype,
        quantization: Quantization | None,
        kv_format: KVFormat,
        max_num_batched_tokens: int,
    ) -> None:
        self._config = config
        self._weights = weights
        self._dtype = dtype
        self._quantization = quantization
        self._kv_format = kv_format
        self._max_num_batched_tokens = max_num_batched_tokens
        self._cache: KernelCache | None = None
        self._program = Program(max_num_batched_tokens)

    @property
    def description(self) -> ModelDescription:
        isa = current_isa()
        return ModelDescription(
            path="native",
            path_reason="",
            dtype=dtype_name(self._dtype),
            quantization=self._quantization or "",
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
        return self._program

    def allocate_cache(self, num_blocks: int, block_size: int) -> None:
        assert self._cache is None, "operations point into the first one"
        self._cache = KernelCache(
            self.layer_shapes, num_blocks=num_blocks, block_size=block_size, kv_format=self._kv_format
        )
        self._logits = _build(self._program, self._config, self._weights, self._cache.layers)

    def forward(self, batch: Batch) -> torch.Tensor:
        self._program.run(batch)
        return self._logits[: len(batch.sample_rows)]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        assert self._cache is not None, "blocks are copied between forward passes"
        self._cache.copy_blocks(pairs)

    def forget(self, request: Request) -> None:
        """Nothing lies outside of the blocks."""


def _build(program: Program, config: DecoderConfig, weights: DecoderWeights, layers: Sequence[KVLayer]) -> torch.Tensor:
    """Adds all operations of a step; returns where the logits of the sampled rows will stand."""
    builder = _DecoderBuilder(program, config)
    hidden = program.embed(weights.embedding, out=program.buffer(config.hidden_size))
    for index, (layer, kv_layer) in enumerate(zip(weights.layers, layers, strict=True)):
        attended = builder.attention(hidden, layer, kv_layer, window=config.windows[index])
        if index == config.num_layers - 1:
            # What follows the last attention concerns sampled rows only; the others have left their keys and values.
            hidden, attended = program.select_sampled(hidden), program.select_sampled(attended)
        hidden = program.linear(attended, layer.output, out=hidden.values, is_added=True)
        hidden = builder.mlp(hidden, layer)
    normed = program.rms_norm(hidden, weights.norm, eps=config.norm_eps, out=builder.normed)
    return program.linear(normed, weights.head, out=program.buffer(config.vocab_size), name="head").values


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
        projected = program.linear(normed, layer.queries_keys_values, out=self._queries_keys_values)
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
        projected = program.linear(normed, layer.gate_and_up, out=self._gate_and_up)
        gated = program.gated_activation(projected, config.activation, out=self._gated)
        return program.linear(gated, layer.down, out=hidden.values, is_added=True)
