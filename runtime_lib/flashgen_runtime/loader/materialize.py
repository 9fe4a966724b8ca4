"""Turns a checkpoint into a model on its device: every header is checked first, every tensor accounted for."""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from flashgen_runtime.config import DeviceRequirements, DType
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.base import LoadedModel
from flashgen_runtime.loader.checkpoint import first_line, is_encoder, read_headers, read_json
from flashgen_runtime.loader.device import check_device
from flashgen_runtime.loader.quiet import quiet_transformers
from flashgen_runtime.loader.safetensors_header import SafetensorsHeader
from flashgen_runtime.loader.tensors import name_tensors

# What checkpoints of encoders carry beside the encoder: heads of their training.
ENCODER_HEADS = ("pooler.", "bert.pooler.", "cls.")


def load_model(path: Path, *, dtype: DType, device: str) -> LoadedModel:
    """Loads a checkpoint with transformers' own class for it; never runs its code, never unpickles.

    Args:
        path: the checkpoint's folder.
        dtype: of the weights; "auto" keeps the checkpoint's own.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        WeightsError: a file is missing, broken or lies, or the tensors are not those of the architecture.
        DeviceError: there is no such device.
    """
    check_device(DeviceRequirements(gpus=0, gpu_memory_bytes=None, gpu_cuda_capability=None), device)
    headers = read_headers(path)
    config = read_config(path)
    with quiet_transformers():
        module = _materialize(path, config, dtype=dtype, headers=headers)
    module = module.to(device).eval().requires_grad_(requires_grad=False)
    return LoadedModel(
        module=module,
        config=module.config,
        path=path,
        dtype=module.dtype,
        device=torch.device(device),
        weight_bytes=sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers())),
    )


def read_config(path: Path) -> Any:
    """A checkpoint's configuration as transformers reads it; raises `WeightsError`."""
    file = path / "config.json"
    tree = read_json(file)
    if "quantization_config" in tree:
        method = tree["quantization_config"].get("quant_method", "unknown")
        raise WeightsError(file, f"quantised checkpoints (here: `{method}`) are not supported yet")
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    # Configuration classes raise whatever their own checks raise.
    except Exception as error:
        raise WeightsError(file, f"transformers does not take it: {first_line(error)}") from error


def _materialize(path: Path, config: Any, *, dtype: DType, headers: list[SafetensorsHeader]) -> Any:
    """The model with all weights from the checkpoint, none invented and none left over."""
    # `Any`: the annotations do not know that `output_loading_info` makes it return two things.
    auto_class: Any = _auto_class(config)
    try:
        module, info = auto_class.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below by name
            output_loading_info=True,
            **({"add_pooling_layer": False} if is_encoder(config.model_type) else {}),
        )
    # Model classes raise whatever their constructors raise for a configuration that makes no sense.
    except Exception as error:
        raise WeightsError(path / "config.json", f"the model cannot be built: {first_line(error)}") from error
    _check_tensors(path, info, headers=headers, ignored=ENCODER_HEADS if is_encoder(config.model_type) else ())
    return module


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
