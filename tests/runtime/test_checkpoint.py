"""Finding a checkpoint and reading what lies beside its weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flashgen_runtime.config import FolderSource
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.checkpoint import (
    locate_folder,
    read_eos_ids,
    read_generation_params,
    read_headers,
    read_json,
)
from flashgen_runtime.messages import GenerationParams

SHARDS = {"a": "model-1.safetensors", "b": "model-2.safetensors"}


def write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree), encoding="utf-8")


def write_shards(folder: Path, weight_map: Any = SHARDS) -> None:
    for tensor, name in SHARDS.items():
        save_file({tensor: torch.zeros(2)}, folder / name)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def test_folder_source(tmp_path: Path) -> None:
    """A local model lies below the models folder; one that does not is named."""
    (tmp_path / "coder").mkdir()

    assert locate_folder(FolderSource(folder="coder"), tmp_path) == tmp_path / "coder"
    with pytest.raises(WeightsError, match="other: no such folder"):
        locate_folder(FolderSource(folder="other"), tmp_path)


def test_sharded_checkpoint(tmp_path: Path) -> None:
    """All shards that the index names are read."""
    write_shards(tmp_path)

    assert {name for header in read_headers(tmp_path) for name in header.tensors} == {"a", "b"}


def test_missing_shard_is_named(tmp_path: Path) -> None:
    """A shard that the index names and that is not there."""
    write_shards(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()

    with pytest.raises(WeightsError, match=r"model-2\.safetensors: no such file"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "problem"),
    [
        ({"a": "model-2.safetensors"}, "tensor `a` is not in `model-2.safetensors`, as it says"),
        ({"a": "../model-1.safetensors"}, "no safetensors file beside it"),
        ({"a": "/etc/passwd"}, "no safetensors file beside it"),
        ({"a": "pytorch_model.bin"}, "no safetensors file beside it"),
        ({"a": 3}, "no safetensors file beside it"),
        ({}, "has no `weight_map`"),
        (["a"], "has no `weight_map`"),
    ],
)
def test_lying_index_is_named(tmp_path: Path, weight_map: Any, problem: str) -> None:
    """An index that points elsewhere, or says what is not so."""
    write_shards(tmp_path, weight_map)

    with pytest.raises(WeightsError) as caught:
        read_headers(tmp_path)

    assert problem in caught.value.problem


def test_pickled_checkpoint_is_refused(tmp_path: Path) -> None:
    """Weights as a pickle only: the file and the reason are named."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")

    with pytest.raises(WeightsError, match=r"only `pytorch_model\.bin`: pickled files can run code"):
        read_headers(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    """A folder without weights says what was looked for."""
    with pytest.raises(WeightsError, match=r"neither `model\.safetensors` nor"):
        read_headers(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "line 1 column 2"),
        (b"\xff", "cannot be read as JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 10**5, "JSON"),
    ],
)
def test_malformed_json_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    """A broken configuration is named with the place."""
    path = tmp_path / "config.json"
    path.write_bytes(content)

    with pytest.raises(WeightsError) as caught:
        read_json(path)

    assert caught.value.path == path
    assert problem in caught.value.problem


def test_end_of_sequence_ids_of_both_files(tmp_path: Path) -> None:
    """Chat models name more than one; all of them count."""
    write_json(tmp_path / "config.json", {"eos_token_id": 2})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [2, 7]})

    assert read_eos_ids(tmp_path) == {2, 7}


def test_no_end_of_sequence_id(tmp_path: Path) -> None:
    """A model without one only ends by length or stop strings; one of a wrong type is named."""
    write_json(tmp_path / "config.json", {"eos_token_id": None})
    assert read_eos_ids(tmp_path) == frozenset()

    write_json(tmp_path / "config.json", {"eos_token_id": "</s>"})
    with pytest.raises(WeightsError, match="`eos_token_id` is '</s>'"):
        read_eos_ids(tmp_path)


@pytest.mark.parametrize(
    ("tree", "params"),
    [
        ({}, GenerationParams()),
        ({"do_sample": False, "temperature": 0.6, "max_new_tokens": 9}, GenerationParams(temperature=0, max_tokens=9)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 1, "top_k": 20, "min_p": 0.1, "bos_token_id": 1},
            GenerationParams(temperature=0.6, top_p=1, top_k=20, min_p=0.1),
        ),
        (
            {"do_sample": False, "typical_p": 0.5, "repetition_penalty": 1.05, "num_beams": 4},
            GenerationParams(temperature=0, repetition_penalty=1.05),
        ),
        ({"typical_p": 0.5, "num_return_sequences": 2}, GenerationParams(typical_p=0.5)),
        ({"temperature": 0.6, "top_k": 0}, GenerationParams(temperature=0.6)),
    ],
)
def test_generation_config(tmp_path: Path, tree: Any, params: GenerationParams) -> None:
    """The checkpoint's decoding parameters; without sampling they are greedy, unknown ones are left out."""
    write_json(tmp_path / "generation_config.json", tree)

    assert read_generation_params(tmp_path) == params


def test_generation_config_of_a_wrong_type(tmp_path: Path) -> None:
    """A number that is none is named."""
    write_json(tmp_path / "generation_config.json", {"temperature": "hot"})

    with pytest.raises(WeightsError, match=r"generation_config\.json: `temperature` is 'hot'"):
        read_generation_params(tmp_path)
