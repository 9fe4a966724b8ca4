"""Finding a checkpoint and reading what lies beside its weights."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file

from flashgen_runtime.config import FolderSource, HubSource
from flashgen_runtime.errors import DownloadError, ServingError, WeightsError
from flashgen_runtime.loader.checkpoint import (
    locate,
    read_eos_ids,
    read_generation_params,
    read_headers,
    read_json,
)
from flashgen_runtime.messages import GenerationParams

HUB = HubSource(repository="owner/name", revision="v1")
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

    assert locate(FolderSource(folder="coder"), tmp_path) == tmp_path / "coder"
    with pytest.raises(WeightsError, match="other: no such folder"):
        locate(FolderSource(folder="other"), tmp_path)


def test_hub_source(tmp_path: Path) -> None:
    """The hub is asked for the revision, and for neither pickled files nor code."""
    asked: dict[str, Any] = {}

    def download(repository: str, **arguments: Any) -> str:
        asked.update(arguments, repository=repository)
        return str(tmp_path)

    assert locate(HUB, Path("unused"), download=download) == tmp_path
    assert (asked["repository"], asked["revision"]) == ("owner/name", "v1")
    assert not {"*.bin", "*.py", "*.pt"}.intersection(asked["allow_patterns"])


RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://hub.example"))
HUB_ERRORS = [
    (RepositoryNotFoundError("no", response=RESPONSE), "no such repository", WeightsError),
    (GatedRepoError("no", response=RESPONSE), "needs an access token", WeightsError),
    (RevisionNotFoundError("no", response=RESPONSE), "not this revision", WeightsError),
    (HFValidationError("bad name"), "is no name of a repository: bad name", WeightsError),
    (LocalEntryNotFoundError("nothing cached"), "cannot be fetched from the hub: nothing cached", DownloadError),
    (httpx.ConnectError("name not known"), "cannot be fetched from the hub: name not known", DownloadError),
    (PermissionError(13, "cache is read-only"), "cache is read-only", DownloadError),
]


@pytest.mark.parametrize(
    ("error", "problem", "kind"), HUB_ERRORS, ids=[type(error).__name__ for error, *_ in HUB_ERRORS]
)
def test_hub_errors_are_named(
    error: Exception, problem: str, kind: type[ServingError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hub's library raises becomes one line; only what may pass is no error of the weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def download(*_: Any, **__: Any) -> str:
        raise error

    with pytest.raises(ServingError) as caught:
        locate(HUB, Path("unused"), download=download)

    assert type(caught.value) is kind
    assert str(caught.value).startswith("owner/name@v1: ")
    assert problem in str(caught.value)


def test_without_a_network_on_purpose_a_missing_model_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under HF_HUB_OFFLINE the next start finds no more than this one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def download(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("nothing cached")

    with pytest.raises(WeightsError):
        locate(HUB, Path("unused"), download=download)


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
