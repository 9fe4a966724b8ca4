"""The store's plain calls for users' own code."""

from pathlib import Path

import pytest
import torch

from flashgen_runtime import store
from flashgen_runtime.loader import save_dict


def test_a_folder_is_registered_loaded_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model goes into the store, gives its tensors, and leaves nothing behind when it is cleaned up."""
    monkeypatch.setenv("FLASHGEN_STORE", str(tmp_path / "store"))
    folder = tmp_path / "model"
    folder.mkdir()
    save_dict({"weight": torch.arange(8.0)}, folder / "model.safetensors")

    registered = store.register(str(folder))

    assert store.list_models() == [registered] == [store.get_model_info(str(folder))]
    assert torch.equal(store.load(str(folder))["weight"], torch.arange(8.0))
    assert store.cleanup() == 0
    assert store.cleanup(str(folder)) == registered.manifest.num_bytes
    with pytest.raises(store.StoreError, match="has no model"):
        store.get_model_info(str(folder))
