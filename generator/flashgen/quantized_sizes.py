"""What the layers of a checkpoint that is quantised already take in memory, from its headers and `config.json`.

The runtime's parser (`quantization/config.py`) is the strict one; here is only read what the sizes depend on. What it
would refuse is not counted, or counted as if it were run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from flashgen.panel_sizes import linear_bytes
from flashgen.safetensors_headers import TensorInfo

# Nibbles of a word of the kernels': groups begin with a word.
_NIBBLES = 8
_WORD_BITS = 32

# Last parts of the names of tensors that lie beside a layer's codes.
_BESIDE = (
    *("qzeros", "scales", "g_idx"),
    *("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    *("input_scale", "input_zero_point", "output_scale", "output_zero_point"),
)
_CODES = ("qweight", "weight_packed", "weight")
_MARKS = ("qweight", "weight_packed", "weight_scale")


class _Form(NamedTuple):
    """How the kernels hold a layer whose codes they take as they are."""

    weight_format: str
    group_size: int
    has_offsets: bool


@dataclass(frozen=True, slots=True)
class QuantizedLayers:
    """The layers of one checkpoint."""

    tensors: Mapping[str, TensorInfo]
    section: Mapping[str, Any]

    # Whether the weights that the format defines are asked for, in full.
    are_floats: bool

    def linear_bytes(self, names: Sequence[str], in_features: int, out_features: int, dtype: str) -> int:
        """Of layers that are computed as one."""
        has_bias = any(f"{name}.bias" in self.tensors for name in names)
        forms = {None if self.are_floats else self._form(name, in_features) for name in names}
        form = forms.pop() if len(forms) == 1 else None
        if form is None:
            return linear_bytes(dtype, in_features, out_features, has_bias=has_bias)
        return linear_bytes(
            form.weight_format,
            in_features,
            out_features,
            has_bias=has_bias,
            group_size=form.group_size,
            has_offsets=form.has_offsets,
        )

    def _form(self, name: str, in_features: int) -> _Form | None:
        if f"{name}.qweight" in self.tensors:
            return self._awq_or_gptq(in_features)
        if f"{name}.weight_packed" in self.tensors:
            return self._packed(name, in_features)
        weight = self.tensors.get(f"{name}.weight")
        is_int8 = weight is not None and weight.dtype == "I8" and self._is_symmetric(name)
        return _Form("int8", 0, has_offsets=False) if is_int8 else None

    def _awq_or_gptq(self, in_features: int) -> _Form | None:
        has_groups = self.section.get("group_size") not in (None, -1)
        group_size = self.section["group_size"] if has_groups else None
        if self.section["quant_method"] == "awq":
            return _form(4, group_size, in_features, is_symmetric=False)
        if has_groups and self.section.get("desc_act"):
            return None
        bits = self.section["bits"]
        return _form(bits, group_size, in_features, is_symmetric=self.section.get("sym") is not False)

    def _packed(self, name: str, in_features: int) -> _Form | None:
        bits = _bits(self.tensors[f"{name}.weight_packed"].shape[1], in_features)
        num_groups = self.tensors[f"{name}.weight_scale"].shape[1]
        if f"{name}.weight_g_idx" in self.tensors:
            return None
        sizes = (size for size in self._group_sizes() if -(-in_features // size) == num_groups)
        group_size = next(sizes, None)
        return _form(bits, group_size, in_features, is_symmetric=self._is_symmetric(name))

    def _group_sizes(self) -> list[int]:
        weights = [group["weights"] for group in self.section["config_groups"].values()]
        return [each["group_size"] for each in weights if each["strategy"] == "group"]

    def _is_symmetric(self, name: str) -> bool:
        groups = self.section["config_groups"].values()
        is_stored = f"{name}.weight_zero_point" in self.tensors
        return not is_stored or all(group["weights"].get("symmetric", True) for group in groups)


def quantized_layers(
    tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], *, dtype: str, quantization: str | None
) -> QuantizedLayers | None:
    """The layers that a native model's checkpoint holds as integers; `None` where it is not quantised.

    Raises `ValueError` where the spec asks for another precision than it has: the runtime says so.
    """
    section = config.get("quantization_config")
    if section is None:
        return None
    if quantization not in (None, *(f"int{bits}" for bits in _all_bits(section))):
        raise ValueError(f"a quantised checkpoint has no `{quantization}`")
    return QuantizedLayers(tensors, section, are_floats=dtype == "float32" and quantization is None)


def dequantized_values(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> dict[str, int]:
    """How many floats become of each tensor of quantised layers: all of the one with the codes, none of the others."""
    section = config.get("quantization_config")
    if section is None:
        return {}
    layers = {name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] in _MARKS}
    found = {f"{layer}.{part}": 0 for layer in layers for part in _BESIDE if f"{layer}.{part}" in tensors}
    for layer in layers:
        name = next(name for part in _CODES if (name := f"{layer}.{part}") in tensors)
        tensor = tensors[name]
        found[name] = tensor.num_values
        if tensor.dtype == "I32":
            (bits,) = _all_bits(section)
            found[name] *= _WORD_BITS // bits
    return found


def _all_bits(section: Mapping[str, Any]) -> set[int]:
    """Of a code, in all layers of integers."""
    if section.get("quant_method") != "compressed-tensors":
        return {section.get("bits", 4)}
    weights = [group["weights"] for group in section["config_groups"].values()]
    return {each["num_bits"] for each in weights if each.get("type", "int") == "int"}


def _form(bits: int, group_size: int | None, in_features: int, *, is_symmetric: bool) -> _Form | None:
    if bits == 8:
        return _Form("int8", 0, has_offsets=False) if group_size is None and is_symmetric else None
    if group_size is not None and group_size % _NIBBLES:
        return None
    return _Form("int4", group_size or -(-in_features // _NIBBLES) * _NIBBLES, has_offsets=not is_symmetric)


def _bits(num_words: int, in_features: int) -> int:
    return next(bits for bits in (4, 8) if -(-in_features * bits // _WORD_BITS) == num_words)
