"""The plain path: a transformers class as it is, with its own cache, one request per forward pass.

It takes what the paged path cannot: attention of the classes' own, states instead of keys and values, rotary embeddings
that depend on the length, encoders beside decoders. The steps are those of transformers' `generate`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashgen_runtime.config import Quantization
from flashgen_runtime.engine.batch import Batch
from flashgen_runtime.engine.causal_model import ModelDescription
from flashgen_runtime.engine.kv_cache import LayerShape
from flashgen_runtime.engine.request import Request
from flashgen_runtime.engine.surgery import operate
from flashgen_runtime.errors import ConfigError, WeightsError
from flashgen_runtime.kernels.library import current_isa
from flashgen_runtime.loader.base import LoadedModel

# Lengths at which a request's memory is measured; the longer one covers a block of the default size.
MEASURED_TOKENS = (1, 33)


@dataclass(slots=True)
class _State:
    """What a class keeps for one request between forward passes."""

    num_tokens: int

    # The arguments of the next pass, cache included, as transformers updates them.
    arguments: dict[str, Any]


class PlainModel:
    """Implements `CausalModel`. Memory is counted in blocks of the engine's pool but held by the class's own cache.

    Args:
        model: owned from now on.
        quantization: of the linear layers, which must all be torch's own.
        path_reason: why the model does not take a faster path.

    Raises:
        ConfigError: the class does not run with quantised linear layers.
        WeightsError: the configuration does not say what a decoder starts with.
    """

    def __init__(self, model: LoadedModel, *, path_reason: str, quantization: Quantization | None = None) -> None:
        self._model = model
        self._module: Any = model.module
        self._states: dict[Request, _State] = {}
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._start_ids = _decoder_start(model) if self._is_encoder_decoder else []
        if quantization is not None:
            _quantize(model, quantization)
        try:
            self._bytes_per_token = self._measure_memory()
        except AttributeError as error:
            if quantization is None:
                raise
            raise _cannot_be_quantized(model, quantization, str(error)) from error
        self.description = ModelDescription(
            path="plain",
            path_reason=path_reason,
            dtype=str(model.dtype).removeprefix("torch."),
            quantization=quantization or model.precision,
            kv_cache_dtype=str(self._module.dtype).removeprefix("torch."),
            kernels=(current_isa() or "torch") if quantization else "torch",
            # Nothing else is in a request's forward pass.
            is_batch_invariant=True,
        )

    @property
    def vocab_size(self) -> int:
        size: int = self._module.get_input_embeddings().num_embeddings
        return size

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def layer_shapes(self) -> list[LayerShape]:
        """None: what the classes keep has many shapes."""
        return []

    @property
    def block_bytes_per_token(self) -> int:
        """As measured; what a request holds whatever its length is spread over one block of the default size."""
        return self._bytes_per_token

    @property
    def num_states(self) -> int:
        """Requests that something is kept for."""
        return len(self._states)

    @property
    def can_chunk(self) -> bool:
        return False

    @property
    def can_share_blocks(self) -> bool:
        return False

    def allocate_cache(self, num_blocks: int, block_size: int) -> None:
        """Nothing: the classes allocate as requests grow, and the engine's pool bounds how far."""

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        logits = [
            self._forward_request(chunk.request, chunk.request.num_computed_tokens + chunk.num_tokens)
            for chunk in batch.chunks
        ]
        sampled = [row for row, chunk in zip(logits, batch.chunks, strict=True) if chunk.reaches_end]
        # A beam that is computed anew stops before its newest token, so a step may sample nothing.
        return torch.cat(sampled) if sampled else torch.empty(0, self.vocab_size)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        assert not pairs, "blocks are never shared on the plain path"

    def close(self) -> None:
        del self._model, self._module, self._states

    def forget(self, request: Request) -> None:
        self._states.pop(request, None)

    def _forward_request(self, request: Request, num_tokens: int) -> torch.Tensor:
        """[1, V], float32: the logits after the request's first `num_tokens` tokens."""
        ids = request.token_ids[:num_tokens]
        state = self._states.get(request)
        if state is None:
            prompt = ids[: request.num_prompt_tokens] if self._is_encoder_decoder else ids
            state = self._states[request] = _State(0, self._first_arguments(prompt))
        if self._is_encoder_decoder:
            ids = self._start_ids + ids[request.num_prompt_tokens :]
        return self._advance(state, ids)

    def _first_arguments(self, prompt: list[int]) -> dict[str, Any]:
        ids = torch.tensor([prompt], device=self.device)
        arguments: dict[str, Any] = {"use_cache": True, "attention_mask": torch.ones_like(ids)}
        if self._is_encoder_decoder:
            encoder = self._module.get_encoder()
            arguments["encoder_outputs"] = encoder(
                input_ids=ids, attention_mask=arguments["attention_mask"], return_dict=True
            )
        return arguments

    def _advance(self, state: _State, ids: list[int]) -> torch.Tensor:
        """One forward pass over the tokens that are new to the state; [1, V], float32."""
        module = self._module
        inputs = module.prepare_inputs_for_generation(
            torch.tensor([ids], device=self.device),
            next_sequence_length=len(ids) - state.num_tokens if state.num_tokens else None,
            is_first_iteration=state.num_tokens == 0,
            **state.arguments,
        )
        output = module(**inputs, return_dict=True)
        state.num_tokens = len(ids)
        state.arguments = module._update_model_kwargs_for_generation(
            output, state.arguments, is_encoder_decoder=self._is_encoder_decoder
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits.float()

    @torch.inference_mode()
    def _measure_memory(self) -> int:
        """Bytes that each token of a request takes; at least one, so that the number of requests is bounded."""
        sizes = []
        for num_tokens in MEASURED_TOKENS:
            state = _State(0, self._first_arguments([0] * num_tokens))
            self._advance(state, self._start_ids or [0] * num_tokens)
            sizes.append(sum({each.data_ptr(): each.nbytes for each in _tensors(state.arguments)}.values()))
        num_more = MEASURED_TOKENS[1] - MEASURED_TOKENS[0]
        growth = max(0, sizes[1] - sizes[0]) // num_more
        return growth + sizes[0] // num_more + 1


def _decoder_start(model: LoadedModel) -> list[int]:
    module: Any = model.module
    for config in (module.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if (token_id := getattr(config, name, None)) is not None:
                return [token_id]
    raise WeightsError(model.path / "config.json", "has neither `decoder_start_token_id` nor `bos_token_id`")


def _quantize(model: LoadedModel, quantization: Quantization) -> None:
    """Packs the linear layers; raises `ConfigError` where the class has some of its own."""
    if model.device.type != "cpu":
        raise ConfigError("model.quantization", f"`{quantization}` needs kernels, which run on the cpu")
    report = operate(model.module, dtype=model.dtype, quantization=quantization)
    own = sorted(name for name in report.left if "Linear" in name)
    if own or not report.replaced["Linear"] + report.replaced["Conv1D"]:
        raise _cannot_be_quantized(model, quantization, f"linear layers of its own ({', '.join(own)})")


def _cannot_be_quantized(model: LoadedModel, quantization: Quantization, problem: str) -> ConfigError:
    name = type(model.module).__name__
    return ConfigError("model.quantization", f"`{name}` cannot run with `{quantization}`: {problem}")


def _tensors(tree: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """All tensors in what a class keeps, whatever objects it makes of them."""
    seen = set() if seen is None else seen
    if id(tree) in seen:
        return
    seen.add(id(tree))
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from _tensors(each, seen)
    elif isinstance(tree, (list, tuple)):
        for each in tree:
            yield from _tensors(each, seen)
    elif hasattr(tree, "__dict__") and not isinstance(tree, type):
        yield from _tensors(vars(tree), seen)
