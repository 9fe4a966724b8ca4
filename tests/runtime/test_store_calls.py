"""The store's plain calls for users' own code."""

import subprocess
import sys
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
    store.verify(str(folder))
    prepared = store.prepare(str(folder), layout="generic")
    assert prepared.is_new
    assert store.cleanup(str(folder), prepared_only=True) == prepared.num_bytes
    assert store.cleanup(str(folder)) > registered.manifest.num_bytes
    with pytest.raises(store.StoreError, match="has no model"):
        store.get_model_info(str(folder))


def test_looking_at_the_store_imports_no_torch() -> None:
    """Programs that only list models start at once."""
    program = "import sys; sys.modules['torch'] = None; from flashgen_runtime import store; store.list_models()"
    subprocess.run([sys.executable, "-c", program], check=True)
