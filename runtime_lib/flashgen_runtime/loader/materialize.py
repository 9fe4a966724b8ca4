"""Turns a checkpoint into a model on its device: every header is checked first, every tensor accounted for.

transformers builds the skeleton, renames, merges, casts, ties and computes what no file holds; the bytes come from our
reader, in the background, while it does. So what is loaded equals what `from_pretrained` loads.
"""

import logging
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from flashgen_runtime.config import DeviceRequirements, DType
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.checkpoint import first_line, is_encoder, read_headers, read_json
from flashgen_runtime.loader.dequantized import LazyTensor, with_floats
from flashgen_runtime.loader.device import check_device
from flashgen_runtime.loader.memory import DEFAULT_THREADS
from flashgen_runtime.loader.opening import open_weights
from flashgen_runtime.loader.quiet import quiet_transformers
from flashgen_runtime.loader.reader import OpenFile, in_file_order
from flashgen_runtime.loader.safetensors_header import SafetensorsHeader
from flashgen_runtime.loader.stream import WeightStream, stream
from flashgen_runtime.loader.tensors import name_tensors
from flashgen_runtime.logs import fields
from flashgen_runtime.quantization.config import KEY, CheckpointQuantization, parse_quantization

log = logging.getLogger(__name__)

# What checkpoints of encoders carry beside the encoder: heads of their training.
ENCODER_HEADS = ("pooler.", "bert.pooler.", "cls.")


def load_model(
    path: Path,
    *,
    dtype: DType,
    device: str,
    open_file: Callable[[Path], OpenFile] = open_weights,
    threads: int = DEFAULT_THREADS,
) -> LoadedModel:
    """Loads a checkpoint with transformers' own class for it; never runs its code, never unpickles.

    Layers that are stored as integers become floats: the classes then need no package for them.

    On a processor the weights lie where the files were read to or mapped; memory beside that is taken for tensors that
    are cast or merged. Each tensor's memory is given back with it.

    Args:
        path: the checkpoint's folder.
        dtype: of the weights; "auto" keeps the checkpoint's own.
        device: "cpu", "cuda" or "cuda:N".
        open_file: how files are opened; by default those of a store are mapped.
        threads: how many read at a time.

    Raises:
        WeightsError: a file is missing, broken or lies, or the tensors are not those of the architecture.
        DeviceError: there is no such device.
    """
    check_device(DeviceRequirements(gpus=0, gpu_memory_bytes=None, gpu_cuda_capability=None), device)
    headers = read_headers(path)
    config = read_config(path)
    quantization = parse_quantization(path, read_json(path / "config.json"))
    files = [open_file(header.path) for header in headers]
    with quiet_transformers(), stream(files, threads=threads) as arriving:
        module = _materialize(path, config, dtype=dtype, headers=headers, arriving=arriving, quantization=quantization)
    module = module.to(device).eval().requires_grad_(requires_grad=False)
    return LoadedModel(
        module=module,
        config=module.config,
        path=path,
        dtype=module.dtype,
        device=torch.device(device),
        weight_bytes=sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers())),
        quantized_as=quantization.label if quantization is not None else "",
    )


def read_config(path: Path) -> Any:
    """A checkpoint's configuration as transformers reads it, as if all were floats; raises `WeightsError`."""
    file = path / "config.json"
    parse_quantization(path, read_json(file))
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    # Configuration classes raise whatever their own checks raise.
    except Exception as error:
        raise WeightsError(file, f"transformers does not take it: {first_line(error)}") from error
    if hasattr(config, KEY):
        delattr(config, KEY)
    return config


def _materialize(
    path: Path,
    config: Any,
    *,
    dtype: DType,
    headers: list[SafetensorsHeader],
    arriving: WeightStream[OpenFile],
    quantization: CheckpointQuantization | None,
) -> Any:
    """The model with all weights from the checkpoint, none invented and none left over."""
    auto_class = _auto_class(config)
    options: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "ignore_mismatched_sizes": True,  # reported below by name
        "output_loading_info": True,
        **({"add_pooling_layer": False} if is_encoder(config.model_type) else {}),
    }
    reason = _not_ours(path, config, auto_class)
    if reason and quantization is not None:
        problem = f"is quantised ({quantization.label}), and {reason} is read by transformers: take it in floats"
        raise WeightsError(path, problem)
    try:
        if reason:
            log.info("transformers reads the weights", extra=fields(checkpoint=str(path), reason=reason))
            module, info = _read_by_transformers(path, auto_class, options)
        else:
            module, info = _read_by_us(path, auto_class, options, arriving, quantization)
    except WeightsError:
        raise
    # Model classes raise whatever their constructors raise for a configuration that makes no sense.
    except Exception as error:
        raise WeightsError(path / "config.json", f"the model cannot be built: {first_line(error)}") from error
    _check_tensors(path, info, headers=headers, ignored=ENCODER_HEADS if is_encoder(config.model_type) else ())
    return module


class _ArrivingTensor:
    """Stands for a tensor that may not be there yet; transformers asks for its dtype, then for all of it."""

    def __init__(self, file: OpenFile, name: str, arriving: WeightStream[OpenFile]) -> None:
        self._file = file
        self._name = name
        self._arriving = arriving

    @property
    def dtype(self) -> torch.dtype:
        return self._file.dtype(self._name)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getitem__(self, index: Any) -> torch.Tensor:
        self._arriving.wait_for(self._file, self._file.range_of(self._name)[1])
        return self._file.take(self._name)[index]


def _read_by_us(
    path: Path,
    auto_class: Any,
    options: Mapping[str, Any],
    arriving: WeightStream[OpenFile],
    quantization: CheckpointQuantization | None,
) -> tuple[Any, dict[str, Any]]:
    tensors: dict[str, LazyTensor] = {
        name: _ArrivingTensor(file, name, arriving) for file in arriving.files for name in in_file_order(file.header)
    }
    if quantization is not None:
        tensors = with_floats(path, tensors, quantization)
    arriving.start()
    # Imported while bytes arrive.
    model_class = _model_class(options["config"], auto_class)
    module, info = model_class.from_pretrained(None, state_dict=tensors, **options)
    # Whatever became of an error in transformers' threads.
    arriving.wait()
    module.config.name_or_path = str(path)
    if module.can_generate():
        module.adjust_generation_fn(
            None,
            from_auto_class=True,
            from_pipeline=None,
            pretrained_model_name_or_path=path,
            cache_dir=None,
            force_download=False,
            proxies=None,
            local_files_only=True,
            token=None,
            revision=None,
            subfolder="",
            trust_remote_code=False,
        )
    return module, info


def _read_by_transformers(path: Path, auto_class: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    module, info = auto_class.from_pretrained(
        path, use_safetensors=True, local_files_only=True, trust_remote_code=False, **options
    )
    return module, info


def _not_ours(path: Path, config: Any, auto_class: Any) -> str:
    """Why `from_pretrained` would do more than fill a class with the tensors of these files; empty if it would not."""
    if type(config) not in auto_class._model_mapping:
        return "no class of transformers' own"
    if "text_config" in config.sub_configs:
        return "a part of a model with several parts"
    if getattr(config, "extra_files", ()) or getattr(config, "transformers_weights", None):
        return "weights in files of other names"
    if (path / "adapter_config.json").exists():
        return "an adapter"
    return ""


def _model_class(config: Any, auto_class: Any) -> Any:
    """As the auto class chooses."""
    found = auto_class._model_mapping[type(config)]
    if not isinstance(found, list | tuple):
        return found
    named = {each.__name__: each for each in found}
    return next((named[name] for name in config.architectures or () if name in named), found[0])


def _auto_class(config: Any) -> Any:
    if is_encoder(config.model_type):
        return AutoModel
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _check_tensors(
    path: Path, info: dict[str, Any], *, headers: list[SafetensorsHeader], ignored: tuple[str, ...]
) -> None:
    """Raises unless exactly the tensors of the architecture were there; tied ones may be left out."""
    file_of_tensor = {name: header.path for header in headers for name in header.tensors}
    if missing := sorted(info["missing_keys"]):
        raise WeightsError(path, f"lacks {name_tensors(missing)}")
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        problem = f"tensor `{name}` has the shape {list(found)}, its configuration says {list(expected)}"
        raise WeightsError(file_of_tensor.get(name, path), problem)
    if unexpected := sorted(name for name in info["unexpected_keys"] if not name.startswith(ignored)):
        problem = f"holds {name_tensors(unexpected)}, which the architecture does not have"
        raise WeightsError(file_of_tensor.get(unexpected[0], path), problem)
