"""The weights of an encoder as the kernels want them, named in the order of a forward pass. No transformers."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from flashgen_runtime.config import Quantization
from flashgen_runtime.engine.native_encoder_config import EncoderConfig
from flashgen_runtime.engine.native_weights import FORMATS, QUANTIZED_FORMATS
from flashgen_runtime.engine.weight_source import Mark, WeightSource
from flashgen_runtime.kernels.panels import Panels, WeightFormat

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
QUERIES_KEYS_VALUES = ("attention.self.query", "attention.self.key", "attention.self.value")

# Weight and bias of a layer norm, [hidden_size] each, float32.
Norm = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLayer:
    """The weights of one layer."""

    queries_keys_values: tuple[Panels, ...]
    output: tuple[Panels, ...]
    attention_norm: Norm
    up: tuple[Panels, ...]
    down: tuple[Panels, ...]
    norm: Norm

    # What must have arrived for this layer.
    mark: Mark | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderWeights:
    """A whole encoder."""

    # [V, hidden_size], in the model's dtype.
    words: torch.Tensor

    # [positions, hidden_size], float32, with the first token type's row in each: texts have one type.
    positions: torch.Tensor
    norm: Norm
    layers: tuple[EncoderLayer, ...]

    # What must have arrived for the embeddings.
    embedding_mark: Mark | None


def tensor_shapes(config: EncoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a checkpoint by name, without the prefix of models with a head."""
    hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
    yield WORDS, (config.vocab_size, hidden_size)
    yield POSITIONS, (config.num_positions, hidden_size)
    yield TOKEN_TYPES, (config.num_token_types, hidden_size)
    norms = ["embeddings.LayerNorm"]
    for layer in range(config.num_layers):
        prefix = f"encoder.layer.{layer}."
        for name in (*QUERIES_KEYS_VALUES, "attention.output.dense"):
            yield f"{prefix}{name}.weight", (hidden_size, hidden_size)
            yield f"{prefix}{name}.bias", (hidden_size,)
        yield f"{prefix}intermediate.dense.weight", (intermediate_size, hidden_size)
        yield f"{prefix}intermediate.dense.bias", (intermediate_size,)
        yield f"{prefix}output.dense.weight", (hidden_size, intermediate_size)
        yield f"{prefix}output.dense.bias", (hidden_size,)
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
    for norm in norms:
        yield f"{norm}.weight", (hidden_size,)
        yield f"{norm}.bias", (hidden_size,)


def build_weights(
    source: WeightSource,
    config: EncoderConfig,
    *,
    dtype: torch.dtype,
    quantization: Quantization | None,
    prefix: str,
) -> EncoderWeights:
    """Takes all weights from a source; `prefix` stands before their names in the checkpoint."""
    weight_format = QUANTIZED_FORMATS[quantization] if quantization else FORMATS[dtype]
    words = source.tensor("words", (prefix + WORDS,), lambda table: table.to(dtype))
    positions = source.tensor("positions", (prefix + POSITIONS, prefix + TOKEN_TYPES), _positions_of_first_type)
    norm = _norm(source, "norm", f"{prefix}embeddings.LayerNorm")
    embedding_mark = source.mark
    layers = tuple(_layer(source, prefix, layer, weight_format) for layer in range(config.num_layers))
    return EncoderWeights(words=words, positions=positions, norm=norm, layers=layers, embedding_mark=embedding_mark)


def _positions_of_first_type(positions: torch.Tensor, token_types: torch.Tensor) -> torch.Tensor:
    return positions.float() + token_types.float()[0]


def _norm(source: WeightSource, name: str, part: str) -> Norm:
    return (
        source.tensor(f"{name}.weight", (f"{part}.weight",), lambda weight: weight.float()),
        source.tensor(f"{name}.bias", (f"{part}.bias",), lambda bias: bias.float()),
    )


def _layer(source: WeightSource, prefix: str, index: int, weight_format: WeightFormat) -> EncoderLayer:
    def linear(name: str, *parts: str) -> tuple[Panels, ...]:
        names = [f"{prefix}encoder.layer.{index}.{part}" for part in parts]
        return source.linear(f"layers.{index}.{name}", names, weight_format)

    def norm(name: str, part: str) -> Norm:
        return _norm(source, f"layers.{index}.{name}", f"{prefix}encoder.layer.{index}.{part}")

    # In the order of a forward pass: as they are asked for, they arrive.
    queries_keys_values = linear("queries_keys_values", *QUERIES_KEYS_VALUES)
    output = linear("output", "attention.output.dense")
    attention_norm = norm("attention_norm", "attention.output.LayerNorm")
    up = linear("up", "intermediate.dense")
    down = linear("down", "output.dense")
    last_norm = norm("norm", "output.LayerNorm")
    return EncoderLayer(
        queries_keys_values=queries_keys_values,
        output=output,
        attention_norm=attention_norm,
        up=up,
        down=down,
        norm=last_norm,
        mark=source.mark,
    )
