"""Models on this machine's disk, for users' own code: what `flashgen models` does, as plain calls.

`FLASHGEN_STORE` names the store's folder. torch is imported by `load` and `prepare` alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flashgen_runtime.config import DType, Quantization
from flashgen_runtime.loader.checkpoint import read_headers
from flashgen_runtime.loader.store import Store, StoredModel, StoreError, UnknownModelError, default_root

if TYPE_CHECKING:
    import torch

    from flashgen_runtime.engine.prepare import PreparedInfo
    from flashgen_runtime.loader.prepared import Layout
    from flashgen_runtime.loader.state_dict import DeviceMap

__all__ = [
    "Store",
    "StoreError",
    "StoredModel",
    "UnknownModelError",
    "cleanup",
    "get_model_info",
    "list_models",
    "load",
    "prepare",
    "register",
    "verify",
]


def register(uri: str, revision: str | None = None, *, progress: Callable[[int], None] = lambda _: None) -> StoredModel:
    """Puts a model into the store unless it is there: a hub id, a folder, s3://, gs:// or https://.

    Args:
        uri: where the model comes from.
        revision: of the hub: a commit, branch or tag; `None` is the newest.
        progress: called with the number of bytes that have arrived, from several threads.

    Raises:
        WeightsError: no such checkpoint, or its files are not sound.
        DownloadError: it could not be fetched now; the next call goes on where this one ended.
        DiskFullError: the disk has no room; a `DownloadError`.
        StoreError: the store cannot be written.
    """
    return _store().pull(uri, revision, progress=progress)


def load(uri: str, device_map: "DeviceMap" = "cpu", *, revision: str | None = None) -> "dict[str, torch.Tensor]":
    """All tensors of a model, which is fetched first if need be; raises as `register` does.

    On the processor they lie in the mapped file, shared with every process that loads them.
    """
    # Deferred: imports torch.
    from flashgen_runtime.loader.state_dict import load_dict

    model = register(uri, revision)
    tensors: dict[str, torch.Tensor] = {}
    for header in read_headers(model.path):
        # Nobody changes files of the store, so they may be mapped.
        tensors.update(load_dict(header.path, device_map, mode="map"))
    return tensors


def prepare(
    uri: str,
    *,
    revision: str | None = None,
    dtype: DType = "auto",
    quantization: Quantization | None = None,
    layout: "Layout" = "panels",
) -> "PreparedInfo":
    """Makes a model's weights as kernels want them, unless they are there; the model is fetched first if need be.

    Raises as `register` does, and `WeightsError` for a form that the checkpoint cannot have.
    """
    # Deferred: imports torch.
    from flashgen_runtime.engine.prepare import prepare as prepare_weights

    store = _store()
    model = store.pull(uri, revision)
    return prepare_weights(model.path, store, dtype=dtype, quantization=quantization, layout=layout)


def list_models() -> list[StoredModel]:
    """What the store holds, by name."""
    return _store().models()


def get_model_info(uri: str, revision: str | None = None) -> StoredModel:
    """One model of the store, by what it was pulled from or by its name; raises `UnknownModelError`."""
    return _store().get(uri, revision)


def verify(uri: str, revision: str | None = None) -> None:
    """Compares a model's files with what was pulled; raises `WeightsError` for the first that differs."""
    store = _store()
    store.verify(store.get(uri, revision))


def cleanup(uri: str | None = None, *, revision: str | None = None, prepared_only: bool = False) -> int:
    """Removes a model with all of its revisions, or without one what unfinished pulls have left.

    Args:
        uri: what it was pulled from, or its name.
        revision: only this one.
        prepared_only: leave the checkpoint.

    Returns:
        The number of bytes freed.
    """
    store = _store()
    if uri is None:
        return store.clean_up()
    models = store.find_all(uri, revision) or [store.get(uri, revision)]
    return sum(store.remove_prepared(model) if prepared_only else store.remove(model) for model in models)


def _store() -> Store:
    return Store(Path(default_root()))
