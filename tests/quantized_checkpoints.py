"""Writes tiny checkpoints that are quantised already, packed as the tools that people use pack them.

Each writer rounds the linear layers of a checkpoint in floats and gives, beside the files, the weights that the format
defines. Loops over single values, as the tools' own definitions read: nothing of the runtime's unpacking is used.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

# Weights that tools round, in the names of common architectures; routers of experts and embeddings stay as they are.
LINEAR = re.compile(r"(_proj|\.w[123]|query_key_value|dense\w*|^lm_head)\.weight$")

Tensors = dict[str, torch.Tensor]

# AutoAWQ, `awq/modules/linear/gemm.py`: the output that the nibble at each place of a word holds.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to quantise a checkpoint."""

    name: str
    config: dict[str, Any]

    # What becomes of one weight: its tensors by the last part of their names, and the weight that they mean.
    quantize: Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]

    # Whether all layers keep their integers in the native decoder, and what is reported.
    keeps_codes: bool
    label: str

    # What `config.json` says of the others.
    dtype: torch.dtype = torch.float16
    floats: tuple[str, ...] = field(default=("lm_head",))


def write_quantized(source: Path, target: Path, kind: Kind) -> Path:
    """A quantised copy of a checkpoint in floats; returns a copy that holds the weights it means, in float32."""
    target.mkdir(parents=True, exist_ok=True)
    reference = target.with_name(f"{target.name}-floats")
    reference.mkdir(exist_ok=True)
    tensors: Tensors = {}
    meant: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if not LINEAR.search(name) or any(layer.endswith(each) for each in kind.floats):
            tensors[name] = tensor.to(kind.dtype)
            meant[name] = tensors[name].float()
            continue
        parts, meant[name] = kind.quantize(tensor.float())
        tensors |= {f"{layer}.{part}": value.contiguous() for part, value in parts.items()}
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for folder, found, extra in (
        (target, tensors, {"dtype": str(kind.dtype).removeprefix("torch."), "quantization_config": kind.config}),
        (reference, meant, {"dtype": "float32"}),
    ):
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({**config, **extra}), encoding="utf-8")
    return reference


def pack_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, n] of codes → [rows, ceil(n * bits / 32)] int32, the lowest bits first, padded with zeros."""
    per_word = 32 // bits
    rows, count = values.shape
    words = torch.zeros(rows, -(-count // per_word), dtype=torch.int64)
    for place in range(count):
        words[:, place // per_word] |= values[:, place].long() << bits * (place % per_word)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def rounded(
    weight: torch.Tensor, bits: int, group_of: torch.Tensor, *, is_symmetric: bool, scale_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [N, K], scales and zeros [N, G], and what they mean, [N, K] float32: plain rounding to nearest."""
    num_groups, top = int(group_of.max()) + 1, 2**bits - 1
    scales, zeros = torch.empty(len(weight), num_groups), torch.empty(len(weight), num_groups)
    for group in range(num_groups):
        values = weight[:, group_of == group]
        if is_symmetric:
            scales[:, group] = values.abs().amax(dim=1) / (top // 2)
            zeros[:, group] = 2 ** (bits - 1)
        else:
            lowest, highest = values.amin(dim=1).clamp(max=0), values.amax(dim=1).clamp(min=0)
            scales[:, group] = (highest - lowest) / top
            zeros[:, group] = (-lowest / scales[:, group]).round().clamp(1, top)
    scales = scales.to(scale_dtype).float()
    codes = (weight / scales[:, group_of] + zeros[:, group_of]).round().clamp(0, top)
    return codes, scales, zeros, (codes - zeros[:, group_of]) * scales[:, group_of]


def awq(group_size: int = 32, **config: Any) -> Kind:
    """AutoAWQ, version "gemm"."""

    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        num_inputs = weight.shape[1]
        group_of = torch.arange(num_inputs) // (group_size if group_size > 0 else num_inputs)
        codes, scales, zeros, meant = rounded(weight, 4, group_of, is_symmetric=False, scale_dtype=torch.float16)
        parts = {
            "qweight": pack_words(in_awq_order(codes.T), 4),
            "qzeros": pack_words(in_awq_order(zeros.T), 4),
            "scales": scales.T.half(),
        }
        return parts, meant

    tree = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm"}
    label = f"awq int4 g{group_size}" if group_size > 0 else "awq int4"
    name = f"awq-g{group_size}" if group_size > 0 else "awq-channel"
    return Kind(name=name, config={**tree, **config}, quantize=quantize, keeps_codes=True, label=label)


def in_awq_order(values: torch.Tensor) -> torch.Tensor:
    """[rows, outputs], the eight of each word in the order in which AWQ stores them."""
    places = [first + place for first in range(0, values.shape[1], 8) for place in AWQ_ORDER]
    return values[:, places]


def gptq(
    bits: int = 4,
    group_size: int = 32,
    *,
    is_symmetric: bool = True,
    is_sorted: bool = False,
    version: str = "gptq",
    **config: Any,
) -> Kind:
    """GPTQModel and AutoGPTQ."""

    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        num_inputs = weight.shape[1]
        group_of = torch.arange(num_inputs) // (group_size if group_size > 0 else num_inputs)
        if is_sorted:
            group_of = group_of[torch.randperm(num_inputs, generator=torch.Generator().manual_seed(num_inputs))]
        codes, scales, zeros, meant = rounded(
            weight, bits, group_of, is_symmetric=is_symmetric, scale_dtype=torch.float16
        )
        stored_zeros = zeros - 1 if version == "gptq" else zeros
        parts = {
            "qweight": pack_words(codes, bits).T,
            "qzeros": pack_words(stored_zeros.T, bits),
            "scales": scales.T.half(),
            "g_idx": group_of.to(torch.int32),
        }
        return parts, meant

    tree = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "sym": is_symmetric,
        "desc_act": is_sorted,
        "checkpoint_format": version,
        "lm_head": False,
    }
    has_groups = group_size > 0
    words = [
        "gptq",
        str(bits),
        f"g{group_size}" if has_groups else "channel",
        *(["asym"] if not is_symmetric else []),
        *(["sorted"] if is_sorted else []),
        *(["v2"] if version != "gptq" else []),
    ]
    fits = bits == 4 or (is_symmetric and not has_groups)
    return Kind(
        name="-".join(words),
        config={**tree, **config},
        quantize=quantize,
        keeps_codes=fits and not (is_sorted and has_groups),
        label=f"gptq int{bits}" + (f" g{group_size}" if has_groups else ""),
    )


def compressed(
    layout: str = "pack-quantized",
    bits: int = 4,
    group_size: int | None = 32,
    *,
    is_symmetric: bool = True,
    is_sorted: bool = False,
    has_one_scale: bool = False,
    activations: dict[str, Any] | None = None,
    **config: Any,
) -> Kind:
    """llm-compressor."""

    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        num_outputs, num_inputs = weight.shape
        group_of = torch.arange(num_inputs) // (group_size or num_inputs)
        if is_sorted:
            group_of = group_of[torch.randperm(num_inputs, generator=torch.Generator().manual_seed(num_inputs))]
        if layout == "float-quantized":
            return to_fp8(weight, has_one_scale=has_one_scale)
        codes, scales, zeros, meant = rounded(
            weight, bits, group_of, is_symmetric=is_symmetric, scale_dtype=torch.bfloat16
        )
        parts = {"weight_scale": scales.bfloat16()}
        if layout == "int-quantized":
            parts["weight"] = (codes - 128).to(torch.int8)
            if not is_symmetric:
                parts["weight_zero_point"] = (zeros - 128).to(torch.int8)
            return parts, meant
        # Codes are signed in memory, and moved to unsigned ones as they are packed: these are the unsigned ones.
        parts["weight_packed"] = pack_words(codes, bits)
        parts["weight_shape"] = torch.tensor([num_outputs, num_inputs])
        if not is_symmetric:
            parts["weight_zero_point"] = pack_words(zeros.T, bits).T
        if is_sorted:
            parts["weight_g_idx"] = group_of.to(torch.int32)
        return parts, meant

    strategy = "tensor" if has_one_scale else "group" if group_size else "channel"
    kind = "float" if layout == "float-quantized" else "int"
    weights = {
        "num_bits": bits,
        "type": kind,
        "strategy": strategy,
        "symmetric": is_symmetric,
        "group_size": group_size,
        "actorder": "group" if is_sorted else None,
        "dynamic": False,
    }
    tree = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations},
        },
    }
    words = ["ct", layout.split("-", maxsplit=1)[0], str(bits), strategy]
    words += [word for word, flag in (("asym", not is_symmetric), ("sorted", is_sorted)) if flag]
    is_packed4 = layout == "pack-quantized" and bits == 4 and not is_sorted
    is_int8 = kind == "int" and bits == 8 and group_size is None and is_symmetric
    group = f" g{group_size}" if group_size else ""
    return Kind(
        name="-".join(words),
        config={**tree, **config},
        quantize=quantize,
        keeps_codes=is_packed4 or is_int8,
        label=f"compressed-tensors {'fp8' if kind == 'float' else f'int{bits}'}{group}",
        dtype=torch.bfloat16,
    )


def to_fp8(weight: torch.Tensor, *, has_one_scale: bool) -> tuple[Tensors, torch.Tensor]:
    """Scaled to the largest number of float8_e4m3fn."""
    largest = weight.abs().amax() if has_one_scale else weight.abs().amax(dim=1, keepdim=True)
    scale = (largest / torch.finfo(torch.float8_e4m3fn).max).bfloat16().view(-1, 1)
    values = (weight / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    meant = values.float() * scale.float()
    return {"weight": values, "weight_scale": scale.flatten() if has_one_scale else scale}, meant


DYNAMIC_INT8 = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}

KINDS = (
    awq(32),
    awq(16),
    awq(-1),
    gptq(4, 32),
    gptq(4, -1),
    gptq(4, 32, is_symmetric=False),
    gptq(4, 32, is_symmetric=False, version="gptq_v2"),
    gptq(4, 32, is_sorted=True),
    gptq(4, 32, is_sorted=True, is_symmetric=False),
    gptq(8, -1),
    gptq(8, 32),
    gptq(8, -1, is_symmetric=False),
    compressed(),
    compressed(is_symmetric=False),
    compressed(is_sorted=True),
    compressed(group_size=None),
    compressed(group_size=None, is_symmetric=False),
    compressed(bits=8, group_size=None),
    compressed(bits=8, group_size=32),
    compressed("int-quantized", 8, None, activations=DYNAMIC_INT8),
    compressed("int-quantized", 8, None, is_symmetric=False, activations=DYNAMIC_INT8),
    compressed("float-quantized", 8, None),
    compressed("float-quantized", 8, None, has_one_scale=True),
)
