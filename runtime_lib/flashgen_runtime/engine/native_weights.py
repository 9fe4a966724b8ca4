"""The weights of a dense decoder as the kernels want them, named in the order of a forward pass. No transformers."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from flashgen_runtime.config import Quantization
from flashgen_runtime.engine.native_config import DecoderConfig
from flashgen_runtime.engine.weight_source import Mark, WeightSource
from flashgen_runtime.kernels.panels import Panels, WeightFormat

FORMATS = {torch.float32: WeightFormat.F32, torch.float16: WeightFormat.F16, torch.bfloat16: WeightFormat.BF16}
QUANTIZED_FORMATS: dict[Quantization, WeightFormat] = {"int8": WeightFormat.INT8, "int4": WeightFormat.INT4}

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
NORM = "model.norm.weight"

# The projections that are computed as one, in the order of their outputs.
QUERIES_KEYS_VALUES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_AND_UP = ("mlp.gate_proj", "mlp.up_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer. Norms are [hidden_size] and [head_size], float32; outputs of several panels follow one another."""

    attention_norm: torch.Tensor
    queries_keys_values: tuple[Panels, ...]
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: tuple[Panels, ...]
    mlp_norm: torch.Tensor
    gate_and_up: tuple[Panels, ...]
    down: tuple[Panels, ...]

    # What must have arrived for this layer.
    mark: Mark | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWeights:
    """A whole decoder."""

    # [V, hidden_size] in the model's dtype; or the panels of the head, where that is the embedding.
    embedding: torch.Tensor | Panels
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: Panels

    # What must have arrived for the embedding, and for the head.
    embedding_mark: Mark | None
    head_mark: Mark | None


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint by name, without a head of its own where it is the embedding."""
    hidden_size = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        f"{EMBEDDING}.weight": (config.vocab_size, hidden_size),
        NORM: (hidden_size,),
    }
    if not config.is_head_tied:
        shapes[f"{HEAD}.weight"] = (config.vocab_size, hidden_size)
    for layer in range(config.num_layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer_shapes(config)}
    return shapes


def linear_layers(config: DecoderConfig) -> Iterator[tuple[str, ...]]:
    """The linear layers by their names in a checkpoint, those together that are computed as one."""
    for layer in range(config.num_layers):
        for parts in (QUERIES_KEYS_VALUES, ("self_attn.o_proj",), GATE_AND_UP, ("mlp.down_proj",)):
            yield tuple(f"model.layers.{layer}.{part}" for part in parts)
    if not config.is_head_tied:
        yield (HEAD,)


def ignored_tensors(config: DecoderConfig) -> Iterator[str]:
    """What transformers ignores as well: a second copy of a tied head, and the frequencies in old checkpoints."""
    yield f"{HEAD}.weight"
    for layer in range(config.num_layers):
        yield f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"


def build_weights(
    source: WeightSource,
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    quantization: Quantization | None,
    has_own_head: bool,
) -> DecoderWeights:
    """Takes all weights from a source.

    Args:
        source: of a checkpoint whose tensors are those of `tensor_shapes`.
        config: what its `config.json` says.
        dtype: of the weights that are not quantised.
        quantization: of the linear layers; the head is never below int8.
        has_own_head: whether the head is another matrix than the embedding.
    """
    weight_format = QUANTIZED_FORMATS[quantization] if quantization else FORMATS[dtype]
    head_format = WeightFormat.INT8 if quantization else FORMATS[dtype]
    is_shared = not has_own_head and quantization is None

    embedding: torch.Tensor | Panels
    if is_shared:
        (embedding,) = source.linear("embedding", (EMBEDDING,), head_format)
    else:
        embedding = source.tensor("embedding", (f"{EMBEDDING}.weight",), lambda table: table.to(dtype).contiguous())
    embedding_mark = source.mark
    layers = tuple(_layer(source, layer, config, weight_format) for layer in range(config.num_layers))
    norm = source.tensor("norm", (NORM,), _as_float)
    if isinstance(embedding, Panels):
        head = embedding
    else:
        (head,) = source.linear("head", (HEAD if has_own_head else EMBEDDING,), head_format)
    return DecoderWeights(
        embedding=embedding,
        layers=layers,
        norm=norm,
        head=head,
        embedding_mark=embedding_mark,
        head_mark=source.mark,
    )


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


def _layer(source: WeightSource, index: int, config: DecoderConfig, weight_format: WeightFormat) -> LayerWeights:
    prefix = f"model.layers.{index}."

    def norm(name: str, part: str) -> torch.Tensor:
        return source.tensor(f"layers.{index}.{name}", (f"{prefix}{part}.weight",), _as_float)

    def linear(name: str, *parts: str) -> tuple[Panels, ...]:
        return source.linear(f"layers.{index}.{name}", [prefix + part for part in parts], weight_format)

    # In the order of a forward pass: as they are asked for, they arrive.
    attention_norm = norm("attention_norm", "input_layernorm")
    queries_keys_values = linear("queries_keys_values", *QUERIES_KEYS_VALUES)
    query_norm = norm("query_norm", "self_attn.q_norm") if config.has_head_norm else None
    key_norm = norm("key_norm", "self_attn.k_norm") if config.has_head_norm else None
    output = linear("output", "self_attn.o_proj")
    mlp_norm = norm("mlp_norm", "post_attention_layernorm")
    gate_and_up = linear("gate_and_up", *GATE_AND_UP)
    down = linear("down", "mlp.down_proj")
    return LayerWeights(
        attention_norm=attention_norm,
        queries_keys_values=queries_keys_values,
        query_norm=query_norm,
        key_norm=key_norm,
        output=output,
        mlp_norm=mlp_norm,
        gate_and_up=gate_and_up,
        down=down,
        mark=source.mark,
    )


def _as_float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float()
