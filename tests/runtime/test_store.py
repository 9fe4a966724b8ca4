"""The store holds checkpoints that are complete, whatever happens while they come."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flashgen_runtime.errors import DiskFullError, DownloadError, WeightsError
from flashgen_runtime.loader import fetch, save_dict
from flashgen_runtime.loader.folder_source import FolderSource
from flashgen_runtime.loader.locks import locked
from flashgen_runtime.loader.manifest import MANIFEST_NAME
from flashgen_runtime.loader.remote_files import RemoteFile
from flashgen_runtime.loader.store import Store, StoreError, UnwritableStoreError, stored_name


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with weights, a configuration and files that a store does not want."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_dict({"weight": torch.arange(1000.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "modeling.py").write_text("raise SystemExit")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class CountingSource(FolderSource):
    """Counts what is fetched, and may fail at one file, or add to it."""

    def __init__(self, folder: Path, *, failing: str | None = None, damaging: str | None = None) -> None:
        super().__init__(folder)
        self.fetched: list[str] = []
        self._failing = failing
        self._damaging = damaging

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        if file.name == self._failing:
            raise DownloadError(file.name, "the line is dead")
        self.fetched.append(file.name)
        time.sleep(0.02)
        yield from super().read(file, start)
        if file.name == self._damaging:
            yield b"more"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashgen_runtime.loader.fetch.PAUSE_SECONDS", 0.0)


def test_pulled_model_is_listed_with_its_files(store: Store, checkpoint: Path) -> None:
    """A pull copies weights and configuration, neither pickles nor code, read-only, and reports every byte."""
    arrived: list[int] = []
    expected: list[int] = []
    model = store.pull(str(checkpoint), on_start=expected.append, progress=arrived.append)
    assert [file.name for file in model.manifest.files] == ["config.json", "model.safetensors"]
    assert sum(arrived) == expected[0] == model.manifest.num_bytes
    assert store.models() == [model]
    assert not (model.path / "model.safetensors").stat().st_mode & 0o222


def test_second_pull_fetches_nothing(store: Store, checkpoint: Path) -> None:
    """A model that is there is given back as it is."""
    first = store.pull(str(checkpoint))
    source = CountingSource(checkpoint)
    assert store.pull(str(checkpoint), source=source) == first
    assert source.fetched == []


def test_read_only_store_serves_what_it_has(store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that is mounted for reading takes no lock."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    model = store.pull(str(checkpoint))
    monkeypatch.setattr("flashgen_runtime.loader.locks.os.open", refuse)
    assert store.pull(str(checkpoint)) == model


def test_pulls_of_one_model_share_one_download(store: Store, checkpoint: Path) -> None:
    """Four pulls at once fetch every file once, and all of them get the model."""
    source = CountingSource(checkpoint)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(store.pull(str(checkpoint), source=source))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(source.fetched) == ["config.json", "model.safetensors"]
    assert len(found) == 4
    assert len({model.path for model in found}) == 1


def test_failed_pull_leaves_no_model(store: Store, checkpoint: Path) -> None:
    """When one file does not come there is no model; the next pull makes it complete."""
    with pytest.raises(DownloadError, match="dead"):
        store.pull(str(checkpoint), source=CountingSource(checkpoint, failing="model.safetensors"))
    assert store.models() == []
    assert store.pull(str(checkpoint)).manifest.files[1].name == "model.safetensors"


def test_damaged_arrival_is_refused(store: Store, checkpoint: Path) -> None:
    """A file of another size than promised is an error, and is thrown away."""
    with pytest.raises(WeightsError, match="longer than"):
        store.pull(str(checkpoint), source=CountingSource(checkpoint, damaging="config.json"))
    assert store.models() == []
    assert not list((store.root / "partial").rglob("config.json"))


def test_broken_weights_never_become_a_model(store: Store, checkpoint: Path) -> None:
    """A file whose header lies is refused when it arrives, not when it is served."""
    os.truncate(checkpoint / "model.safetensors", 5000)
    with pytest.raises(WeightsError, match="truncated"):
        store.pull(str(checkpoint))
    assert store.models() == []


def test_killed_pull_leaves_nothing_that_looks_complete(store: Store, checkpoint: Path) -> None:
    """After SIGKILL in the middle there is no model, the lock is free, and a pull goes through."""
    program = f"""
import os, time
from pathlib import Path
from flashgen_runtime.loader.folder_source import FolderSource
from flashgen_runtime.loader.store import Store
class Slow(FolderSource):
    def read(self, file, start):
        yield from super().read(file, start)
        os.write(1, (file.name + chr(10)).encode())  # one call: files are fetched by several threads
        if file.name == "model.safetensors":
            time.sleep(60)
Store(Path({str(store.root)!r})).pull({str(checkpoint)!r}, source=Slow(Path({str(checkpoint)!r})))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = {process.stdout.readline().strip() for _ in range(2)}
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert lines == {"config.json", "model.safetensors"}
    assert store.models() == []
    assert store.pull(str(checkpoint)).manifest.num_bytes > 4000


def test_full_disk_is_said_before_the_first_byte(
    store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint larger than what is left is refused with both numbers."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    source = CountingSource(checkpoint)
    with pytest.raises(DiskFullError, match="100 are left"):
        store.pull(str(checkpoint), source=source)
    assert source.fetched == []


class FullDisk(io.FileIO):
    """A file that takes some bytes and no more."""

    def write(self, content: Any) -> int:
        if self.tell() > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(memoryview(content)[:1500])


def test_full_disk_in_the_middle_is_said_and_what_has_arrived_stays(
    store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else may fill the disk meanwhile; when there is room again the pull goes on."""
    open_file = fetch._File._open

    def on_full_disk(file: Any) -> FullDisk:
        with open_file(file) as opened:
            return FullDisk(opened.name, "r+")

    with monkeypatch.context() as patch:
        patch.setattr(fetch._File, "_open", on_full_disk)
        with pytest.raises(DiskFullError, match="no room for it on the disk"):
            store.pull(str(checkpoint))
    assert store.models() == []
    (part,) = (store.root / "partial").glob("*/model.safetensors")
    assert part.stat().st_size > 2000

    store.verify(store.pull(str(checkpoint)))


def test_store_that_cannot_be_written_is_an_error_that_names_it(checkpoint: Path, tmp_path: Path) -> None:
    """The user learns which folder it is."""
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableStoreError, match="file/"):
        Store(tmp_path / "file" / "store").pull(str(checkpoint))


def test_removed_model_takes_its_prepared_files_along(store: Store, checkpoint: Path) -> None:
    """Prepared files can be removed alone, and never outlive their checkpoint; the bytes of both are counted."""
    model = store.pull(str(checkpoint))
    prepared = store.root / "prepared" / model.name / "float32-panels.safetensors"
    prepared.parent.mkdir(parents=True)
    prepared.write_bytes(b"12345")
    assert store.prepared_files(model) == [prepared]
    assert store.remove_prepared(model) == 5
    assert store.prepared_files(model) == []
    assert store.remove_prepared(model) == 0

    prepared.parent.mkdir()
    prepared.write_bytes(b"12345")
    manifest_bytes = (model.path / MANIFEST_NAME).stat().st_size
    assert store.remove(model) == model.manifest.num_bytes + manifest_bytes + 5
    assert not prepared.exists()


def test_pull_killed_before_its_last_step_fetches_nothing_again(
    store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are complete and read-only are taken as they are."""
    with monkeypatch.context() as patch:
        patch.setattr("flashgen_runtime.loader.store.sync", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.pull(str(checkpoint))
    source = CountingSource(checkpoint)
    store.verify(store.pull(str(checkpoint), source=source))
    assert source.fetched == []


def test_verify_finds_a_changed_byte(store: Store, checkpoint: Path) -> None:
    """A sound model passes; one changed byte is an error that names the file."""
    model = store.pull(str(checkpoint))
    store.verify(model)
    path = model.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        store.verify(model)


def test_removed_model_is_gone(store: Store, checkpoint: Path) -> None:
    """After `remove` there is neither a model nor its bytes, and it can be pulled again."""
    store.remove(store.pull(str(checkpoint)))
    assert store.models() == []
    assert not [path for path in store.root.rglob("*") if path.is_file() and path.parent.name != "locks"]
    store.pull(str(checkpoint))


def test_clean_up_spares_what_is_worked_on(store: Store, checkpoint: Path) -> None:
    """Unfinished pulls are removed unless somebody holds their lock."""
    with pytest.raises(DownloadError):
        store.pull(str(checkpoint), source=CountingSource(checkpoint, failing="model.safetensors"))
    (name,) = [folder.name for folder in (store.root / "partial").iterdir()]
    with locked(store.root / "locks" / name):
        assert store.clean_up() == 0
    assert store.clean_up() > 0
    assert list((store.root / "partial").iterdir()) == []


def test_unknown_model_is_an_error_with_the_known_ones(store: Store, checkpoint: Path) -> None:
    """Asking for a model that is not there names those that are."""
    store.pull(str(checkpoint))
    with pytest.raises(StoreError, match="checkpoint"):
        store.get("nobody/nothing")


def test_damaged_manifest_is_an_error_of_its_model_alone(
    store: Store, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A manifest that is no JSON is named when its model is pulled; other models are served and listed."""
    model = store.pull(str(checkpoint))
    (model.path / MANIFEST_NAME).chmod(0o644)
    (model.path / MANIFEST_NAME).write_text("{")
    shutil.copytree(checkpoint, tmp_path / "other")
    other = store.pull(str(tmp_path / "other"))

    assert store.models() == [other]
    assert MANIFEST_NAME in caplog.text
    with pytest.raises(WeightsError, match=MANIFEST_NAME):
        store.pull(str(checkpoint))


def test_folder_is_one_model_from_everywhere(store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means the folder that it means now, not any folder of that name."""
    monkeypatch.chdir(checkpoint.parent)
    model = store.pull("./checkpoint")
    monkeypatch.chdir("/")
    assert store.find(str(checkpoint)) == model
    assert store.find("./checkpoint") is None


@pytest.mark.parametrize("length", range(50, 75))
def test_a_name_can_be_typed(length: int) -> None:
    """However long the address is, its name does not begin with a dash, as an option would, nor with a dot."""
    assert stored_name("/a-.b" * length, "")[0].isalnum()
    assert stored_name(f"/some/where/{'x-' * length}", "")[0].isalnum()
