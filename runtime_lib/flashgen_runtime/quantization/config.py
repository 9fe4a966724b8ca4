"""Reads `quantization_config` of a checkpoint's `config.json`: which layers are quantised, and how.

What is not run is refused with its key, its value and what would be run.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from flashgen_runtime.config import Quantization
from flashgen_runtime.errors import ConfigError, WeightsError
from flashgen_runtime.quantization.awq import AwqLayer
from flashgen_runtime.quantization.compressed_tensors import PackedLayer, PlainLayer
from flashgen_runtime.quantization.gptq import GptqLayer
from flashgen_runtime.quantization.scheme import LayerScheme, Precision

KEY = "quantization_config"

_HEAD = "lm_head"
_REGEX = "re:"
_EXCLUDED = "-:"

_GPTQ_VERSIONS = ("gptq", "gptq_v2")
_CT_FORMATS = ("pack-quantized", "int-quantized", "float-quantized")

# Both words for act order; the others, "weight" and "static", leave the inputs of a group neighbours.
_SORTED = ("group", "dynamic")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointQuantization:
    """How the linear layers of a checkpoint are quantised."""

    # For people: "awq int4 g128".
    label: str

    # What the spec would call it, where it has a word for it.
    as_option: Quantization | None

    # How a layer of this name is, if it is a linear layer; `None`: in floats.
    scheme_of: Callable[[str], LayerScheme | None]


def parse_quantization(path: Path, config: Mapping[str, Any]) -> CheckpointQuantization | None:
    """What `config.json` says; `None` where the checkpoint is not quantised; raises `WeightsError`.

    Args:
        path: the checkpoint's folder.
        config: what the file holds.
    """
    if config.get(KEY) is None:
        return None
    section = _Section(path / "config.json", config[KEY], KEY)
    method = section.one_of("quant_method", tuple(_PARSERS))
    return _PARSERS[method](section)


def check_option(found: CheckpointQuantization, quantization: Quantization | None, path: Path) -> None:
    """Raises `ConfigError` where the spec asks for another precision than a quantised checkpoint has."""
    if quantization not in (None, found.as_option):
        problem = f"`{quantization}` cannot be had of `{path.name}`, which is quantised already: {found.label}"
        raise ConfigError("model.quantization", f"{problem}; leave the key out, or take the checkpoint in floats")


class _Section:
    """An object of the configuration; what is wrong with it is said with its place."""

    def __init__(self, file: Path, tree: Any, place: str) -> None:
        self._file = file
        self._place = place
        if not isinstance(tree, dict):
            raise WeightsError(file, f"`{place}` is {tree!r}, expected an object")
        self.tree: dict[str, Any] = tree

    def refuse(self, key: str, expected: str) -> NoReturn:
        raise WeightsError(self._file, f"`{self._place}.{key}` is {self.tree.get(key)!r}, expected {expected}")

    def one_of(self, key: str, choices: tuple[Any, ...], *, default: Any = None) -> Any:
        found = self.tree.get(key)
        found = default if found is None else found
        if found not in choices or isinstance(found, bool) != isinstance(choices[0], bool):
            self.refuse(key, " or ".join(f"`{choice}`" for choice in choices))
        return choices[choices.index(found)]

    def flag(self, key: str, *, default: bool) -> bool:
        return bool(self.one_of(key, (True, False), default=default))

    def group_size(self) -> int | None:
        """`None` for -1: one scale for each output."""
        found = self.tree.get("group_size")
        if type(found) is not int or (found < 1 and found != -1):
            self.refuse("group_size", "a positive number, or -1 for one scale per output")
        return None if found == -1 else found

    def names(self, key: str) -> list[str]:
        """A list of strings; regular expressions among them are sound."""
        found = self.tree.get(key) or []
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            self.refuse(key, "a list of names")
        self._check_patterns(key, [name.removeprefix(_REGEX) for name in found if name.startswith(_REGEX)])
        return found

    def absent(self, key: str, expected: str) -> None:
        """Refuses a key that says something."""
        if self.tree.get(key):
            self.refuse(key, expected)

    def excluded(self, key: str) -> list[str]:
        """Patterns of layers that are in floats, as GPTQModel's `dynamic` gives them."""
        found = self.tree.get(key) or {}
        if not isinstance(found, dict) or not all(name.startswith(_EXCLUDED) for name in found):
            self.refuse(key, f"patterns with `{_EXCLUDED}` alone: all quantised layers are of one precision")
        patterns = [name.removeprefix(_EXCLUDED) for name in found]
        self._check_patterns(key, patterns)
        return patterns

    def inner(self, key: str) -> "_Section":
        return _Section(self._file, self.tree.get(key), f"{self._place}.{key}")

    def _check_patterns(self, key: str, patterns: list[str]) -> None:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                self.refuse(key, f"regular expressions, and {pattern!r} is none: {error}")


def _parse_awq(section: _Section) -> CheckpointQuantization:
    bits = section.one_of("bits", (4,))
    # All other words there name kernels, for files of one form.
    if section.tree.get("backend") == "llm-awq":
        section.refuse("backend", "AutoAWQ's files")
    version = str(section.tree.get("version") or section.tree.get("format") or "gemm").lower()
    if version != "gemm":
        section.refuse("version", "`gemm`")
    # The file holds zeros whatever this says.
    section.flag("zero_point", default=True)
    layer = AwqLayer(Precision(bits=bits, group_size=section.group_size(), is_symmetric=False))
    skipped = section.names("modules_to_not_convert")

    def scheme_of(name: str) -> LayerScheme | None:
        return None if _is_head(name) or any(part in name for part in skipped) else layer

    return _of_one("awq", layer, scheme_of)


def _parse_gptq(section: _Section) -> CheckpointQuantization:
    bits = section.one_of("bits", (4, 8))
    group_size = section.group_size()
    version = section.one_of(
        "checkpoint_format", _GPTQ_VERSIONS, default=section.one_of("format", _GPTQ_VERSIONS, default="gptq")
    )
    is_sorted = section.flag("desc_act", default=False)
    precision = Precision(
        bits=bits,
        group_size=group_size,
        is_symmetric=section.flag("sym", default=True),
        is_in_order=group_size is None or not is_sorted,
    )
    layer = GptqLayer(precision, has_plain_zeros=version == "gptq_v2")
    has_head = section.flag("lm_head", default=False)
    excluded = section.excluded("dynamic")
    suffixes = _suffixes(section)

    def scheme_of(name: str) -> LayerScheme | None:
        if _is_head(name):
            return layer if has_head else None
        if any(re.match(pattern, name) for pattern in excluded):
            return None
        is_named = suffixes is None or any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)
        return layer if is_named else None

    return _of_one("gptq", layer, scheme_of)


def _suffixes(section: _Section) -> list[str] | None:
    """Ends of the names of quantised layers, if only some are: a list of lists, or one list."""
    key = "modules_in_block_to_quantize"
    found = section.tree.get(key)
    if found is None:
        return None
    names = [name for part in found for name in (part if isinstance(part, list) else [part])]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in names):
        section.refuse(key, "lists of names")
    return names


def _parse_compressed_tensors(section: _Section) -> CheckpointQuantization:
    section.one_of("quantization_status", (None, "compressed", "frozen"))
    section.absent("kv_cache_scheme", "null: the cache's precision is `engine.kv_cache.dtype` in the spec")
    section.absent("transform_config", "none: weights are used as they are")
    sparsity = section.tree.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        section.refuse("sparsity_config", "dense weights")
    groups = [_parse_group(section, name) for name in section.inner("config_groups").tree]
    if not groups:
        section.refuse("config_groups", "at least one group")
    ignored = section.names("ignore")
    labels = dict.fromkeys(group.layer.precision.label for group in groups)
    options = {_option(group.layer.precision) for group in groups}
    return CheckpointQuantization(
        label=f"compressed-tensors {' + '.join(labels)}",
        as_option=options.pop() if len(options) == 1 else None,
        scheme_of=partial(_find_group, groups, ignored),
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """Layers of one scheme."""

    targets: list[str]
    layer: PackedLayer | PlainLayer


def _parse_group(section: _Section, name: str) -> _Group:
    group = section.inner("config_groups").inner(name)
    # A group may have a format of its own, in files of several.
    kind = (group if group.tree.get("format") else section).one_of("format", _CT_FORMATS)
    weights = group.inner("weights")
    weights.one_of("type", ("float",) if kind == "float-quantized" else ("int",), default="int")
    bits = weights.one_of("num_bits", (4, 8) if kind == "pack-quantized" else (8,))
    strategies = ("group", "channel") if kind == "pack-quantized" else ("channel", "tensor")
    strategy = weights.one_of("strategy", strategies)
    is_symmetric = weights.flag("symmetric", default=True)
    targets = group.names("targets")
    if kind == "pack-quantized":
        group_size = weights.group_size() if strategy == "group" else None
        order = weights.one_of("actorder", (None, *_SORTED, "weight", "static"))
        is_in_order = group_size is None or order not in _SORTED
        precision = Precision(bits=bits, group_size=group_size, is_symmetric=is_symmetric, is_in_order=is_in_order)
        return _Group(targets, PackedLayer(precision))
    is_float = kind == "float-quantized"
    if is_float and not is_symmetric:
        weights.refuse("symmetric", "`True`")
    precision = Precision(bits=bits, group_size=None, is_symmetric=is_symmetric, is_float=is_float)
    return _Group(targets, PlainLayer(precision, has_one_scale=strategy == "tensor"))


def _find_group(groups: list[_Group], ignored: list[str], name: str) -> LayerScheme | None:
    """Names come before classes, as in compressed-tensors."""
    if any(_is_match(name, each) for each in ignored):
        return None
    named = (group for group in groups if any(_is_match(name, target) for target in group.targets))
    of_class = (group for group in groups if "Linear" in group.targets)
    group = next(named, None) or next(of_class, None)
    return None if group is None else group.layer


def _is_match(name: str, target: str) -> bool:
    if target.startswith(_REGEX):
        return re.match(target.removeprefix(_REGEX), name) is not None
    return target == name


def _of_one(
    method: str, layer: AwqLayer | GptqLayer, scheme_of: Callable[[str], LayerScheme | None]
) -> CheckpointQuantization:
    return CheckpointQuantization(
        label=f"{method} {layer.precision.label}", as_option=_option(layer.precision), scheme_of=scheme_of
    )


def _option(precision: Precision) -> Quantization | None:
    if precision.is_float:
        return None
    return "int4" if precision.bits == 4 else "int8"


def _is_head(name: str) -> bool:
    return name == _HEAD or name.endswith(f".{_HEAD}")


_PARSERS: dict[str, Callable[[_Section], CheckpointQuantization]] = {
    "awq": _parse_awq,
    "gptq": _parse_gptq,
    "compressed-tensors": _parse_compressed_tensors,
}
