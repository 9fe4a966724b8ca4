"""Our own encoder of the BERT family as a program of kernels: a batch of texts is one call. No transformers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch

from flashgen_runtime.config import DType, Quantization
from flashgen_runtime.engine.batch import FlatTokens, flat_fields
from flashgen_runtime.engine.causal_model import ModelDescription
from flashgen_runtime.engine.kernel_cache import FORMATS as KV_FORMATS
from flashgen_runtime.engine.native_config import (
    ACTIVATIONS,
    MAX_HEAD_SIZE,
    UnsupportedConfigError,
    asked_dtype,
    dtype_name,
    read_size,
)
from flashgen_runtime.engine.native_weights import FORMATS, QUANTIZED_FORMATS
from flashgen_runtime.engine.pooling import Pooling, pool
from flashgen_runtime.kernels.kv_layer import TILE_SIZE, KVFormat, KVLayer
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.kernels.operations import Activation
from flashgen_runtime.kernels.panels import Panels, WeightFormat, pack_fused
from flashgen_runtime.kernels.program import Program, Rows
from flashgen_runtime.loader.checkpoint import read_json
from flashgen_runtime.loader.tensors import CheckpointTensors

# What checkpoints carry beside the encoder: heads of their training, and numbers from 0 up.
IGNORED = ("pooler.", "cls.", "embeddings.position_ids")

# Models with a head lay the encoder below this name.
PREFIX = "bert."

QUERIES_KEYS_VALUES = ("attention.self.query", "attention.self.key", "attention.self.value")

# Weight and bias of a layer norm, [hidden_size] each, float32.
Norm = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """An encoder with learned positions and layer norms after attention and MLP."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    num_positions: int
    num_token_types: int
    activation: Activation
    norm_eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderLayer:
    """The weights of one layer."""

    queries_keys_values: Panels
    output: Panels
    attention_norm: Norm
    up: Panels
    down: Panels
    norm: Norm


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderWeights:
    """A whole encoder."""

    # [V, hidden_size], in the model's dtype.
    words: torch.Tensor

    # [positions, hidden_size], float32, with the first token type's row in each: texts have one type.
    positions: torch.Tensor
    norm: Norm
    layers: tuple[EncoderLayer, ...]


def parse_encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Reads `config.json`; raises `UnsupportedConfigError` with the reason why the model is not run natively."""
    if (family := config.get("model_type")) != "bert":
        raise UnsupportedConfigError(f"models of type `{family}`")
    if "quantization_config" in config:
        raise UnsupportedConfigError("quantised checkpoints")
    if (kind := config.get("position_embedding_type", "absolute")) != "absolute":
        raise UnsupportedConfigError(f"positions of type `{kind}`")
    if config.get("is_decoder"):
        raise UnsupportedConfigError("decoders of the BERT family")
    if (activation := config.get("hidden_act", "gelu")) not in ACTIVATIONS:
        raise UnsupportedConfigError(f"the activation `{activation}`")
    hidden_size, num_heads = read_size(config, "hidden_size", 768), read_size(config, "num_attention_heads", 12)
    head_size = hidden_size // num_heads
    if head_size * num_heads != hidden_size or head_size > MAX_HEAD_SIZE or head_size % 4:
        raise UnsupportedConfigError(f"{num_heads} heads over {hidden_size} values")
    return EncoderConfig(
        vocab_size=read_size(config, "vocab_size", 30522),
        hidden_size=hidden_size,
        intermediate_size=read_size(config, "intermediate_size", 3072),
        num_heads=num_heads,
        num_layers=read_size(config, "num_hidden_layers", 12),
        num_positions=read_size(config, "max_position_embeddings", 512),
        num_token_types=read_size(config, "type_vocab_size", 2),
        activation=ACTIVATIONS[activation],
        norm_eps=float(config.get("layer_norm_eps", 1e-12)),
    )


def load_native_encoder(
    path: Path,
    *,
    dtype: DType,
    quantization: Quantization | None,
    pooling: Pooling,
    max_num_batched_tokens: int,
) -> "NativeEncoder":
    """Loads a checkpoint of the BERT family.

    Args:
        path: the checkpoint's folder.
        dtype: of the weights that are not quantised; "auto" keeps the checkpoint's own.
        quantization: of the linear layers.
        pooling: how the vectors of a text's tokens become one.
        max_num_batched_tokens: tokens of one call; a single text may have as many as there are positions.

    Raises:
        UnsupportedConfigError: the checkpoint is fine, but nothing for this class.
        WeightsError: a file is missing or broken, or its tensors are not those of the configuration.
    """
    tree = read_json(path / "config.json")
    config = parse_encoder_config(tree)
    tensors = _EncoderTensors(path)
    if tensors.have_old_names:
        raise UnsupportedConfigError("checkpoints that call the weights of norms gamma and beta")
    tensors.expect(dict(_shapes(config)))
    weight_dtype = asked_dtype(tree, dtype) or tensors.embedding_dtype
    return NativeEncoder(
        config,
        _load_weights(tensors, config, weight_dtype, quantization),
        dtype=weight_dtype,
        quantization=quantization,
        pooling=pooling,
        max_num_batched_tokens=max_num_batched_tokens,
    )


class NativeEncoder:
    """Turns token ids into unit vectors; each call of `encode` is one forward pass on the CPU."""

    def __init__(
        self,
        config: EncoderConfig,
        weights: EncoderWeights,
        *,
        dtype: torch.dtype,
        quantization: Quantization | None,
        pooling: Pooling,
        max_num_batched_tokens: int,
    ) -> None:
        self._config = config
        self._dtype = dtype
        self._quantization = quantization
        self._pooling = pooling
        max_tokens = max(max_num_batched_tokens, config.num_positions)
        # Keys and values live for one layer of one call, so that all layers share them. A text begins a block of its
        # own; memory that no text reaches is never touched.
        head_size = config.hidden_size // config.num_heads
        kv_format = KVFormat.BF16 if quantization else KV_FORMATS[dtype]
        self._keys_values = KVLayer(max_tokens, TILE_SIZE, config.num_heads, head_size, head_size, kv_format)
        self._program = Program(max_tokens)
        self._hidden = _build(self._program, config, weights, self._keys_values)

    @property
    def description(self) -> ModelDescription:
        isa = current_isa()
        return ModelDescription(
            path="native",
            path_reason="",
            dtype=dtype_name(self._dtype),
            quantization=self._quantization or "",
            kv_cache_dtype="",
            kernels=isa or "torch",
            is_batch_invariant=isa is not None,
        )

    @property
    def vocab_size(self) -> int:
        return self._config.vocab_size

    @property
    def num_positions(self) -> int:
        """Tokens of the longest text."""
        return self._config.num_positions

    @property
    def program(self) -> Program:
        """What a call runs; benchmarks ask it for its profile."""
        return self._program

    @torch.inference_mode()
    def encode(self, sequences: Sequence[Sequence[int]]) -> list[bytes]:
        """One vector for each sequence, in order: little-endian float32 values, of length 1 as a vector."""
        lengths = [len(sequence) for sequence in sequences]
        self._program.run(flatten_texts(sequences))
        return pool(self._hidden[: sum(lengths)], lengths, self._pooling)


def flatten_texts(sequences: Sequence[Sequence[int]], *, sample_rows: Sequence[int] = ()) -> FlatTokens:
    """One row of tokens; each sequence has blocks of its own, one after the other."""
    lengths = [len(sequence) for sequence in sequences]
    tables: list[range] = []
    slots: list[int] = []
    for length in lengths:
        first = tables[-1].stop if tables else 0
        tables.append(range(first, first + -(-length // TILE_SIZE)))
        slots += range(first * TILE_SIZE, first * TILE_SIZE + length)
    fields = flat_fields(
        input_ids=list(chain.from_iterable(sequences)),
        positions=list(chain.from_iterable(map(range, lengths))),
        slot_mapping=slots,
        sample_rows=sample_rows,
        kv_lens=lengths,
        starts=list(accumulate(lengths, initial=0)),
        block_tables=tables,
        block_size=TILE_SIZE,
        device=torch.device("cpu"),
    )
    return FlatTokens(**fields)


def _build(program: Program, config: EncoderConfig, weights: EncoderWeights, keys_values: KVLayer) -> torch.Tensor:
    """Adds all operations; returns where the vectors of the tokens will stand."""
    projected = program.buffer(3 * config.hidden_size)
    attended = program.buffer(config.hidden_size)
    wide = program.buffer(config.intermediate_size)
    hidden = program.embed(weights.words, out=program.buffer(config.hidden_size))
    hidden = program.add_positions(hidden, weights.positions)
    hidden = _normed(program, hidden, weights.norm, config)
    for layer in weights.layers:
        queries = program.rope_and_store(
            program.linear(hidden, layer.queries_keys_values, out=projected), keys_values, num_heads=config.num_heads
        )
        attention = program.attention(
            queries,
            keys_values,
            num_heads=config.num_heads,
            scaling=(config.hidden_size // config.num_heads) ** -0.5,
            is_causal=False,
            out=attended,
        )
        hidden = program.linear(attention, layer.output, out=hidden.values, is_added=True)
        hidden = _normed(program, hidden, layer.attention_norm, config)
        activated = program.activate(program.linear(hidden, layer.up, out=wide), config.activation, out=wide)
        hidden = program.linear(activated, layer.down, out=hidden.values, is_added=True)
        hidden = _normed(program, hidden, layer.norm, config)
    return hidden.values


def _normed(program: Program, x: Rows, norm: Norm, config: EncoderConfig) -> Rows:
    """In place."""
    return program.layer_norm(x, *norm, eps=config.norm_eps, out=x.values)


class _EncoderTensors:
    """The tensors of a checkpoint by their names in the encoder."""

    def __init__(self, path: Path) -> None:
        self._tensors = CheckpointTensors(path)
        self._prefix = PREFIX if any(name.startswith(PREFIX) for name in self._tensors.names) else ""

    def expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        ignored = (name for name in self._tensors.names if name.removeprefix(self._prefix).startswith(IGNORED))
        self._tensors.expect({self._prefix + name: shape for name, shape in shapes.items()}, ignored=ignored)

    @property
    def have_old_names(self) -> bool:
        return any(name.endswith(".gamma") for name in self._tensors.names)

    @property
    def embedding_dtype(self) -> torch.dtype:
        return self._tensors.dtype(f"{self._prefix}embeddings.word_embeddings.weight")

    def read(self, name: str) -> torch.Tensor:
        return self._tensors.read(self._prefix + name)

    def read_norm(self, name: str) -> Norm:
        return self.read(f"{name}.weight").float(), self.read(f"{name}.bias").float()

    def pack(self, *names: str, weight_format: WeightFormat) -> Panels:
        """Linear layers with the same input as one."""
        weights = [self.read(f"{name}.weight") for name in names]
        return pack_fused(weights, weight_format, biases=[self.read(f"{name}.bias") for name in names])


def _shapes(config: EncoderConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
    yield "embeddings.word_embeddings.weight", (config.vocab_size, hidden_size)
    yield "embeddings.position_embeddings.weight", (config.num_positions, hidden_size)
    yield "embeddings.token_type_embeddings.weight", (config.num_token_types, hidden_size)
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


def _load_weights(
    tensors: _EncoderTensors, config: EncoderConfig, dtype: torch.dtype, quantization: Quantization | None
) -> EncoderWeights:
    weight_format = QUANTIZED_FORMATS[quantization] if quantization else FORMATS[dtype]
    token_types = tensors.read("embeddings.token_type_embeddings.weight").float()
    return EncoderWeights(
        words=tensors.read("embeddings.word_embeddings.weight").to(dtype),
        positions=tensors.read("embeddings.position_embeddings.weight").float() + token_types[0],
        norm=tensors.read_norm("embeddings.LayerNorm"),
        layers=tuple(_layer(tensors, f"encoder.layer.{layer}.", weight_format) for layer in range(config.num_layers)),
    )


def _layer(tensors: _EncoderTensors, prefix: str, weight_format: WeightFormat) -> EncoderLayer:
    names = [prefix + name for name in QUERIES_KEYS_VALUES]
    return EncoderLayer(
        queries_keys_values=tensors.pack(*names, weight_format=weight_format),
        output=tensors.pack(f"{prefix}attention.output.dense", weight_format=weight_format),
        attention_norm=tensors.read_norm(f"{prefix}attention.output.LayerNorm"),
        up=tensors.pack(f"{prefix}intermediate.dense", weight_format=weight_format),
        down=tensors.pack(f"{prefix}output.dense", weight_format=weight_format),
        norm=tensors.read_norm(f"{prefix}output.LayerNorm"),
    )
