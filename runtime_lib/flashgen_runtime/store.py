"""Models on this machine's disk, for users' own code: `register`, `load`, `list_models`, `get_model_info`, `cleanup`.

The same store that `flashgen models` shows; `FLASHGEN_STORE` names its folder.
"""

from pathlib import Path

import torch

from flashgen_runtime.loader.checkpoint import read_headers
from flashgen_runtime.loader.state_dict import DeviceMap, load_dict
from flashgen_runtime.loader.store import Store, StoredModel, StoreError, default_root

__all__ = ["Store", "StoreError", "StoredModel", "cleanup", "get_model_info", "list_models", "load", "register"]


def register(uri: str, revision: str | None = None) -> StoredModel:
    """Puts a model into the store unless it is there: a hub id, a folder, s3://, gs:// or https://.

    Raises:
        WeightsError: no such checkpoint, or its files are not sound.
        DownloadError: it could not be fetched now.
        StoreError: the disk has no room.
    """
    return _store().pull(uri, revision)


def load(uri: str, device_map: DeviceMap = "cpu", *, revision: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a model, which is fetched first if need be; raises as `register` does."""
    model = register(uri, revision)
    tensors: dict[str, torch.Tensor] = {}
    for header in read_headers(model.path):
        # Nobody changes files of the store, so they may be mapped.
        tensors.update(load_dict(header.path, device_map, mode="map"))
    return tensors


def list_models() -> list[StoredModel]:
    """What the store holds, by name."""
    return _store().models()


def get_model_info(uri: str, revision: str | None = None) -> StoredModel:
    """One model of the store, by what it was pulled from or by its name; raises `StoreError` if there is none."""
    return _store().get(uri, revision)


def cleanup(uri: str | None = None) -> int:
    """Removes a model, or without one what unfinished pulls have left; gives the number of bytes freed."""
    store = _store()
    if uri is None:
        return store.clean_up()
    model = store.get(uri)
    store.remove(model)
    return model.manifest.num_bytes


def _store() -> Store:
    return Store(Path(default_root()))
