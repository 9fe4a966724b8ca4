"""The weights of a dense decoder, packed as the kernels want them, from the tensors of its checkpoint. No transformers.

Tensors are read, packed and dropped layer by layer: beside the packed model lie the originals of one fused projection.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from flashgen_runtime.config import Quantization
from flashgen_runtime.engine.native_config import DecoderConfig
from flashgen_runtime.kernels.panels import Panels, WeightFormat, pack, pack_fused
from flashgen_runtime.loader.tensors import CheckpointTensors

FORMATS = {torch.float32: WeightFormat.F32, torch.float16: WeightFormat.F16, torch.bfloat16: WeightFormat.BF16}
QUANTIZED_FORMATS: dict[Quantization, WeightFormat] = {"int8": WeightFormat.INT8, "int4": WeightFormat.INT4}

HEAD = "lm_head.weight"

# The projections that are computed as one, in the order of their outputs.
QUERIES_KEYS_VALUES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_AND_UP = ("mlp.gate_proj", "mlp.up_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer. Norms are [hidden_size] and [head_size], float32."""

    attention_norm: torch.Tensor
    queries_keys_values: Panels
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: Panels
    mlp_norm: torch.Tensor
    gate_and_up: Panels
    down: Panels


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWeights:
    """A whole decoder."""

    # [V, hidden_size] in the model's dtype; or the panels of the head, where that is the embedding.
    embedding: torch.Tensor | Panels
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: Panels


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint by name, without a head of its own where it is the embedding."""
    hidden_size = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden_size),
        "model.norm.weight": (hidden_size,),
    }
    if not config.is_head_tied:
        shapes[HEAD] = (config.vocab_size, hidden_size)
    for layer in range(config.num_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer_shapes(config)}
    return shapes


def load_weights(
    path: Path, config: DecoderConfig, *, dtype: torch.dtype | None, quantization: Quantization | None
) -> tuple[DecoderWeights, torch.dtype]:
    """Reads and packs a checkpoint.

    Args:
        path: the checkpoint's folder.
        config: what its `config.json` says.
        dtype: of the weights that are not quantised; `None`: as the checkpoint's embedding.
        quantization: of the linear layers; the head is never below int8.

    Returns:
        The weights and their dtype. Raises `WeightsError` for tensors that are not those of the configuration.
    """
    tensors = CheckpointTensors(path)
    tensors.expect(tensor_shapes(config), ignored=_ignored(config))
    dtype = dtype or tensors.dtype("model.embed_tokens.weight")
    weight_format = QUANTIZED_FORMATS[quantization] if quantization else FORMATS[dtype]
    embedding, head = _embedding_and_head(tensors, dtype, quantization)
    layers = (_layer(_LayerTensors(tensors, layer), config, weight_format) for layer in range(config.num_layers))
    weights = DecoderWeights(
        embedding=embedding,
        layers=tuple(layers),
        norm=tensors.read("model.norm.weight").float(),
        head=head,
    )
    return weights, dtype


def _layer_shapes(config: DecoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
    query_size = config.num_heads * config.head_size
    kv_size = config.num_kv_heads * config.head_size
    linears = (
        ("self_attn.q_proj", query_size, hidden_size, config.has_qkv_bias),
        ("self_attn.k_proj", kv_size, hidden_size, config.has_qkv_bias),
        ("self_attn.v_proj", kv_size, hidden_size, config.has_qkv_bias),
        ("self_attn.o_proj", hidden_size, query_size, config.has_output_bias),
        ("mlp.gate_proj", intermediate_size, hidden_size, config.has_mlp_bias),
        ("mlp.up_proj", intermediate_size, hidden_size, config.has_mlp_bias),
        ("mlp.down_proj", hidden_size, intermediate_size, config.has_mlp_bias),
    )
    for name, out_features, in_features, has_bias in linears:
        yield f"{name}.weight", (out_features, in_features)
        if has_bias:
            yield f"{name}.bias", (out_features,)
    yield "input_layernorm.weight", (hidden_size,)
    yield "post_attention_layernorm.weight", (hidden_size,)
    if config.has_head_norm:
        yield "self_attn.q_norm.weight", (config.head_size,)
        yield "self_attn.k_norm.weight", (config.head_size,)


def _ignored(config: DecoderConfig) -> Iterator[str]:
    """What transformers ignores as well: a second copy of a tied head, and the frequencies in old checkpoints."""
    yield HEAD
    for layer in range(config.num_layers):
        yield f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"


def _embedding_and_head(
    tensors: CheckpointTensors, dtype: torch.dtype, quantization: Quantization | None
) -> tuple[torch.Tensor | Panels, Panels]:
    embedding = tensors.read("model.embed_tokens.weight").to(dtype)
    head = embedding
    # As in transformers, a head that is there and differs is one of its own, whatever the configuration says.
    if HEAD in tensors.names and not torch.equal(own := tensors.read(HEAD).to(dtype), embedding):
        head = own
    panels = pack(head, WeightFormat.INT8 if quantization else FORMATS[dtype])
    return panels if head is embedding and not quantization else embedding, panels


class _LayerTensors:
    """The tensors of one layer by their names in it."""

    def __init__(self, tensors: CheckpointTensors, layer: int) -> None:
        self._tensors = tensors
        self._prefix = f"model.layers.{layer}."

    def read(self, name: str) -> torch.Tensor:
        return self._tensors.read(self._prefix + name)

    def pack(self, *names: str, weight_format: WeightFormat) -> Panels:
        """Linear layers with the same input as one."""
        weights = [self.read(f"{name}.weight") for name in names]
        has_bias = self._prefix + f"{names[0]}.bias" in self._tensors.names
        biases = [self.read(f"{name}.bias") for name in names] if has_bias else ()
        return pack_fused(weights, weight_format, biases=biases)


def _layer(layer: _LayerTensors, config: DecoderConfig, weight_format: WeightFormat) -> LayerWeights:
    return LayerWeights(
        attention_norm=layer.read("input_layernorm.weight").float(),
        queries_keys_values=layer.pack(*QUERIES_KEYS_VALUES, weight_format=weight_format),
        query_norm=layer.read("self_attn.q_norm.weight").float() if config.has_head_norm else None,
        key_norm=layer.read("self_attn.k_norm.weight").float() if config.has_head_norm else None,
        output=layer.pack("self_attn.o_proj", weight_format=weight_format),
        mlp_norm=layer.read("post_attention_layernorm.weight").float(),
        gate_and_up=layer.pack(*GATE_AND_UP, weight_format=weight_format),
        down=layer.pack("mlp.down_proj", weight_format=weight_format),
    )
