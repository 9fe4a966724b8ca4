"""Finds a checkpoint and reads what lies beside its weights. Neither torch nor transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashgen_runtime.config import FolderSource
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.foreign_formats import foreign_problem
from flashgen_runtime.loader.safetensors_header import SafetensorsHeader, read_header
from flashgen_runtime.messages import GenerationParams

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

# Weights, configurations, tokenizers, templates; never pickled files or code.
HUB_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*/config.json")

# Model types that are loaded as encoders, without a head; all others generate text.
ENCODER_TYPES = frozenset({"bert"})


def locate_folder(source: FolderSource, models_folder: Path) -> Path:
    """The folder of a checkpoint on this machine; raises `WeightsError`."""
    path = models_folder / source.folder
    if not path.is_dir():
        raise WeightsError(path, "no such folder")
    return path


def is_encoder(model_type: object) -> bool:
    """Whether checkpoints of this type are loaded as encoders."""
    return model_type in ENCODER_TYPES


def parse_json(path: Path) -> Any:
    """What a JSON file holds; raises `WeightsError` that names the file and the place in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(path, "no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(path, f"cannot be read as JSON: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """As `parse_json`, for a file that must hold an object."""
    tree = parse_json(path)
    if not isinstance(tree, dict):
        raise WeightsError(path, "is not a JSON object")
    return tree


def read_optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`; an empty object if there is no such file."""
    return read_json(path) if path.exists() else {}


def read_headers(path: Path) -> list[SafetensorsHeader]:
    """The headers of all weight files of a checkpoint, checked one by one and against the index."""
    if (path / WEIGHTS_NAME).exists():
        return [read_header(path / WEIGHTS_NAME)]
    if not (path / INDEX_NAME).exists():
        raise _no_weights(path)
    weight_map = _weight_map(path / INDEX_NAME)
    headers = {name: read_header(path / name) for name in sorted(set(weight_map.values()))}
    file_of: dict[str, str] = {}
    for name, header in headers.items():
        for tensor in header.tensors:
            if (other := file_of.setdefault(tensor, name)) != name:
                raise WeightsError(path / name, f"holds tensor `{tensor}`, which `{other}` holds too")
    for tensor, name in weight_map.items():
        if tensor not in headers[name].tensors:
            raise WeightsError(path / INDEX_NAME, f"tensor `{tensor}` is not in `{name}`, as it says")
    return list(headers.values())


def read_eos_ids(path: Path) -> frozenset[int]:
    """All token ids that end a completion, from both files that name some."""
    eos_ids: set[int] = set()
    for file in (path / "config.json", path / "generation_config.json"):
        found = read_optional_json(file).get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(token_id) is int for token_id in ids):
            raise WeightsError(file, f"`eos_token_id` is {found!r}, neither a token id nor a list of them")
        eos_ids.update(ids)
    return frozenset(eos_ids)


def read_generation_params(path: Path) -> GenerationParams:
    """What the checkpoint's authors say about decoding; fields that we do not know are left out.

    How many choices and beams there are is not theirs to say: callers count on one answer, and pay for more.
    """
    file = path / "generation_config.json"
    tree = read_optional_json(file)
    max_tokens = _number(file, tree, "max_new_tokens", int)
    repetition_penalty = _number(file, tree, "repetition_penalty", float)
    if tree.get("do_sample") is False:
        return GenerationParams(temperature=0, max_tokens=max_tokens, repetition_penalty=repetition_penalty)
    return GenerationParams(
        max_tokens=max_tokens,
        temperature=_number(file, tree, "temperature", float),
        top_p=_number(file, tree, "top_p", float),
        # 0 switches it off there, `None` here.
        top_k=_number(file, tree, "top_k", int) or None,
        min_p=_number(file, tree, "min_p", float),
        typical_p=_number(file, tree, "typical_p", float),
        repetition_penalty=repetition_penalty,
    )


def _number(file: Path, tree: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """The field as a number, or `None`; raises `WeightsError` for anything else."""
    found = tree.get(name)
    if found is None or type(found) is kind or (type(found) is int and kind is float):
        return found
    raise WeightsError(file, f"`{name}` is {found!r}, which is no number of type {kind.__name__}")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name → file name, files in the index's own folder only."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(index, "has no `weight_map`")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise WeightsError(index, f"tensor `{tensor}` lies in {name!r}, which is no safetensors file beside it")
    return weight_map


def _no_weights(path: Path) -> WeightsError:
    config = read_optional_json(path / "config.json")
    problem = foreign_problem(path, config, is_encoder=is_encoder(config.get("model_type")))
    return WeightsError(path, problem or f"has neither `{WEIGHTS_NAME}` nor `{INDEX_NAME}`")


def first_line(error: Exception) -> str:
    """What an exception of another library says, as part of a message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
