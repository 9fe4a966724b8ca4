"""Reads what sentence-transformers writes beside an encoder: which modules follow it and how long a text may be."""

from pathlib import Path
from typing import Literal

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.checkpoint import parse_json, read_optional_json

# A vector is always normalised here, so the module of that name changes nothing.
KNOWN_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})

POOLING_MODES: dict[str, Literal["mean", "cls"]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}


def read_pooling(path: Path) -> Literal["mean", "cls"]:
    """How token vectors become one; a checkpoint that does not say takes the mean. Raises `WeightsError`."""
    _check_modules(path / "modules.json")
    file = path / "1_Pooling" / "config.json"
    config = read_optional_json(file)
    modes = [name for name, is_on in config.items() if name.startswith("pooling_mode_") and is_on is True]
    if not config:
        return "mean"
    if len(modes) != 1 or modes[0] not in POOLING_MODES:
        found = " and ".join(f"`{mode}`" for mode in modes) or "none"
        raise WeightsError(file, f"pooling not supported: expected one of {', '.join(POOLING_MODES)}, found {found}")
    return POOLING_MODES[modes[0]]


def read_max_seq_length(path: Path) -> int | None:
    """Tokens of a text that count, special tokens included; `None` if the checkpoint does not say."""
    file = path / "sentence_bert_config.json"
    length = read_optional_json(file).get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise WeightsError(file, f"`max_seq_length` is {length!r}, which is no length")
    return length


def _check_modules(file: Path) -> None:
    """Raises if something else than pooling and normalising follows the encoder."""
    if not file.exists():
        return
    modules = parse_json(file)
    types = [module.get("type") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    if not types:
        raise WeightsError(file, "is not a list of modules")
    for name in types:
        if not isinstance(name, str) or name.rpartition(".")[2] not in KNOWN_MODULES:
            raise WeightsError(file, f"the module {name!r} is not supported yet")
