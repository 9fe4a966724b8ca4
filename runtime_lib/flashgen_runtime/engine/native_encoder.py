"""Our own encoder of the BERT family as a program of kernels: a batch of texts is one call. No transformers."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path

import torch

from flashgen_runtime.config import DType, Quantization
from flashgen_runtime.engine.batch import FlatTokens, flat_fields
from flashgen_runtime.engine.causal_model import ModelDescription
from flashgen_runtime.engine.kernel_cache import FORMATS as KV_FORMATS
from flashgen_runtime.engine.native_config import (
    UnsupportedConfigError,
    asked_dtype,
    dtype_name,
)
from flashgen_runtime.engine.native_encoder_config import EncoderConfig, parse_encoder_config
from flashgen_runtime.engine.native_encoder_weights import WORDS, EncoderWeights, Norm, build_weights, tensor_shapes
from flashgen_runtime.engine.native_loading import FoundWeights, Recipe, find_weights
from flashgen_runtime.engine.pooling import Pooling, pool
from flashgen_runtime.engine.streamed_program import StreamedProgram
from flashgen_runtime.kernels.kv_layer import TILE_SIZE, KVFormat, KVLayer
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.kernels.program import Program, Rows
from flashgen_runtime.loader.access import WeightAccess
from flashgen_runtime.loader.checkpoint import read_json
from flashgen_runtime.loader.tensors import CheckpointTensors

# What checkpoints carry beside the encoder: heads of their training, and numbers from 0 up.
IGNORED = ("pooler.", "cls.", "embeddings.position_ids")

# Models with a head lay the encoder below this name.
PREFIX = "bert."


def load_native_encoder(
    path: Path,
    *,
    dtype: DType,
    quantization: Quantization | None,
    pooling: Pooling,
    max_num_batched_tokens: int,
    access: WeightAccess | None = None,
) -> "NativeEncoder":
    """Loads a checkpoint of the BERT family.

    Args:
        path: the checkpoint's folder.
        dtype: of the weights that are not quantised; "auto" keeps the checkpoint's own.
        quantization: of the linear layers.
        pooling: how the vectors of a text's tokens become one.
        max_num_batched_tokens: tokens of one call; a single text may have as many as there are positions.
        access: where prepared weights lie; `None` packs the checkpoint into private memory.

    Raises:
        UnsupportedConfigError: the checkpoint is fine, but nothing for this class.
        WeightsError: a file is missing or broken, or its tensors are not those of the configuration.
    """
    config, recipe = encoder_recipe(path, dtype=dtype, quantization=quantization)
    return NativeEncoder(
        config,
        find_weights(recipe, access),
        dtype=recipe.dtype,
        quantization=quantization,
        pooling=pooling,
        max_num_batched_tokens=max_num_batched_tokens,
    )


def encoder_recipe(
    path: Path, *, dtype: DType, quantization: Quantization | None
) -> tuple[EncoderConfig, Recipe[EncoderWeights]]:
    """What a checkpoint's configuration and headers say; raises as `load_native_encoder`."""
    tree = read_json(path / "config.json")
    config = parse_encoder_config(tree)
    tensors = CheckpointTensors(path)
    if any(name.endswith(".gamma") for name in tensors.names):
        raise UnsupportedConfigError("checkpoints that call the weights of norms gamma and beta")
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors.names) else ""
    ignored = (name for name in tensors.names if name.removeprefix(prefix).startswith(IGNORED))
    tensors.expect({prefix + name: shape for name, shape in tensor_shapes(config)}, ignored=ignored)
    weight_dtype = asked_dtype(tree, dtype) or tensors.dtype(f"{prefix}{WORDS}")
    build = partial(build_weights, config=config, dtype=weight_dtype, quantization=quantization, prefix=prefix)
    return config, Recipe(path=path, tensors=tensors, dtype=weight_dtype, quantization=quantization, build=build)


class NativeEncoder:
    """Turns token ids into unit vectors; each call of `encode` is one forward pass on the CPU."""

    def __init__(
        self,
        config: EncoderConfig,
        found: FoundWeights[EncoderWeights],
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
        self._max_tokens = max_tokens
        self._found = found
        self._streamed, self._hidden = self._build()

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
        return self._streamed.program

    @torch.inference_mode()
    def encode(self, sequences: Sequence[Sequence[int]]) -> list[bytes]:
        """One vector for each sequence, in order: little-endian float32 values, of length 1 as a vector."""
        lengths = [len(sequence) for sequence in sequences]
        preparation = self._found.preparation
        if preparation is not None and preparation.is_done:
            self._found = preparation.take() or self._found._replace(preparation=None)
            self._streamed, self._hidden = self._build()
        self._streamed.run(flatten_texts(sequences))
        return pool(self._hidden[: sum(lengths)], lengths, self._pooling)

    def close(self) -> None:
        """Gives back the weights; there are no calls afterwards."""
        if self._found.preparation is not None:
            self._found.preparation.close()
        self._streamed.close()
        self._streamed = StreamedProgram(Program(self._max_tokens), None)
        del self._found, self._hidden, self._keys_values

    def _build(self) -> tuple[StreamedProgram, torch.Tensor]:
        """What a call runs, and where it leaves the vectors of the tokens."""
        streamed = StreamedProgram(Program(self._max_tokens), self._found.stream)
        return streamed, _build(streamed, self._config, self._found.weights, self._keys_values)


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


def _build(
    streamed: StreamedProgram, config: EncoderConfig, weights: EncoderWeights, keys_values: KVLayer
) -> torch.Tensor:
    """Adds all operations; returns where the vectors of the tokens will stand."""
    program = streamed.program
    projected = program.buffer(3 * config.hidden_size)
    attended = program.buffer(config.hidden_size)
    wide = program.buffer(config.intermediate_size)
    hidden = program.embed(weights.words, out=program.buffer(config.hidden_size))
    hidden = program.add_positions(hidden, weights.positions)
    hidden = _normed(program, hidden, weights.norm, config)
    streamed.needs(weights.embedding_mark)
    for layer in weights.layers:
        queries = program.rope_and_store(
            program.linears(hidden, layer.queries_keys_values, out=projected), keys_values, num_heads=config.num_heads
        )
        attention = program.attention(
            queries,
            keys_values,
            num_heads=config.num_heads,
            scaling=(config.hidden_size // config.num_heads) ** -0.5,
            is_causal=False,
            out=attended,
        )
        hidden = program.linears(attention, layer.output, out=hidden.values, is_added=True)
        hidden = _normed(program, hidden, layer.attention_norm, config)
        activated = program.activate(program.linears(hidden, layer.up, out=wide), config.activation, out=wide)
        hidden = program.linears(activated, layer.down, out=hidden.values, is_added=True)
        hidden = _normed(program, hidden, layer.norm, config)
        streamed.needs(layer.mark)
    return hidden.values


def _normed(program: Program, x: Rows, norm: Norm, config: EncoderConfig) -> Rows:
    """In place."""
    return program.layer_norm(x, *norm, eps=config.norm_eps, out=x.values)
