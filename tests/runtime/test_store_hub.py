"""Pulls from a hub on loopback: resumed, pinned, checked, shared, and what happens when it does not answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flashgen_runtime.errors import DownloadError, WeightsError
from flashgen_runtime.loader import save_dict
from flashgen_runtime.loader.store import Store
from tests.fake_hub import FakeHub, fake_hub

NAME = "owner/model"
WEIGHTS = "model.safetensors"


def weights(folder: Path, *, first: float = 0.0) -> bytes:
    path = folder / f"weights-{first}.safetensors"
    save_dict({"weight": torch.arange(first, first + 16384.0)}, path)
    return path.read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one repository: a small file, a large one, and one that nobody wants."""
    with fake_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
        monkeypatch.setattr("flashgen_runtime.loader.fetch.PAUSE_SECONDS", 0.0)
        monkeypatch.setattr("flashgen_runtime.loader.hub_source.CHUNK_BYTES", 1024)
        files = {"config.json": b"{}", WEIGHTS: weights(tmp_path), "pytorch_model.bin": b"pickled"}
        hub.repository(NAME).commit(files, "main")
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_pull_has_the_commit_and_every_digest(hub: FakeHub, store: Store) -> None:
    """Weights and configuration come, checked, and the manifest says of which commit."""
    arrived: list[int] = []
    model = store.pull(NAME, progress=arrived.append)

    assert model.manifest.revision == hub.repository(NAME).references["main"]
    assert [file.name for file in model.manifest.files] == ["config.json", WEIGHTS]
    assert sum(arrived) == model.manifest.num_bytes
    assert len(arrived) > len(model.manifest.files)
    store.verify(model)


def test_main_is_followed_and_a_pinned_commit_needs_no_hub(hub: FakeHub, store: Store, tmp_path: Path) -> None:
    """Without a revision the newest commit is pulled; one that is there by its commit asks nobody."""
    first = store.pull(NAME)
    commit = hub.repository(NAME).commit({"config.json": b"{ }", WEIGHTS: weights(tmp_path)})
    second = store.pull(NAME)
    hub.requests.clear()

    assert second.manifest.revision == commit != first.manifest.revision
    assert store.pull(NAME, first.manifest.revision) == first
    assert hub.requests == []


def test_a_file_that_is_there_is_shared(hub: FakeHub, store: Store, tmp_path: Path) -> None:
    """A new commit with the same weights fetches only what is new, and takes no room for the rest."""
    first = store.pull(NAME)
    hub.repository(NAME).commit({"config.json": b"{ }", WEIGHTS: weights(tmp_path)})
    second = store.pull(NAME)

    assert len(hub.downloads(WEIGHTS)) == 1
    assert (first.path / WEIGHTS).samefile(second.path / WEIGHTS)
    store.remove(first)
    store.verify(second)


def test_a_tag_is_found_again_without_the_hub(hub: FakeHub, store: Store, tmp_path: Path) -> None:
    """What was pulled as `v1` is `v1` when nobody answers; another tag is not."""
    repository = hub.repository(NAME)
    repository.commit({"config.json": b"[]", WEIGHTS: weights(tmp_path, first=1.0)}, "v1")
    tagged = store.pull(NAME, "v1")
    newest = store.pull(NAME)
    hub.is_down = True

    assert store.pull(NAME, "v1") == tagged
    assert store.pull(NAME) == newest
    with pytest.raises(DownloadError, match="v2"):
        store.pull(NAME, "v2")


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_connection_goes_on_where_it_ended(hub: FakeHub, store: Store, *, knows_ranges: bool) -> None:
    """The rest is asked for by its range; a server that knows none sends everything, of which the rest is taken."""
    hub.breaks[WEIGHTS] = (20480, 2)
    hub.knows_ranges = knows_ranges
    arrived: list[int] = []
    model = store.pull(NAME, progress=arrived.append)

    assert sum(arrived) == model.manifest.num_bytes
    ranges = hub.downloads(WEIGHTS)
    assert ranges[0] is None
    assert all(found is not None for found in ranges[1:])
    assert len(ranges) == 3


def test_the_next_pull_goes_on_where_a_failed_one_ended(
    hub: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the line is dead there is no model, and the next attempt fetches only what is missing."""
    monkeypatch.setattr("flashgen_runtime.loader.fetch.MAX_ATTEMPTS", 1)
    hub.breaks[WEIGHTS] = (8192, 1)
    with pytest.raises(DownloadError):
        store.pull(NAME)
    assert store.models() == []

    store.verify(store.pull(NAME))

    first, second = hub.downloads(WEIGHTS)
    assert (first, second) == (None, "bytes=8192-")


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_other_bytes_than_the_hub_promised_are_refused(hub: FakeHub, store: Store, file: str) -> None:
    """Small files are checked as git names them, large ones by SHA-256; both are asked for twice."""
    right = hub.repository(NAME).commits[hub.repository(NAME).references["main"]][file]
    hub.lies[file] = right[:-1] + b"?"
    with pytest.raises(WeightsError, match=f"{file}: arrived damaged"):
        store.pull(NAME)

    assert len(hub.downloads(file)) == 2
    assert store.models() == []


def test_a_file_longer_than_promised_is_refused(hub: FakeHub, store: Store) -> None:
    """A source that never ends fills no disk."""
    hub.lies["config.json"] = b"{}" + bytes(10000)
    with pytest.raises(WeightsError, match="longer than the 2 bytes"):
        store.pull(NAME)


@pytest.mark.parametrize(
    ("uri", "revision", "problem"),
    [
        ("owner/other", None, "no such repository"),
        (NAME, "v9", "not this revision"),
        ("owner/gated", None, "needs an access token"),
        ("own--er/x", None, "no name of a repository"),
    ],
)
def test_what_no_attempt_repairs_is_a_weights_error(
    hub: FakeHub, store: Store, uri: str, revision: str | None, problem: str
) -> None:
    """A wrong name, a wrong revision and a missing permission are said as what they are."""
    hub.gated.add("owner/gated")
    with pytest.raises(WeightsError, match=problem):
        store.pull(uri, revision)


def test_the_hubs_own_cache_serves_when_nobody_answers(hub: FakeHub, store: Store) -> None:
    """What another program has fetched is taken into the store, under its commit."""
    from huggingface_hub import snapshot_download

    snapshot_download(NAME, cache_dir=None, allow_patterns=["*.json", "*.safetensors"])
    hub.is_down = True
    model = store.pull(NAME)

    assert model.manifest.revision == hub.repository(NAME).references["main"]
    assert [file.name for file in model.manifest.files] == ["config.json", WEIGHTS]


def test_the_hubs_own_cache_saves_the_download(hub: FakeHub, store: Store) -> None:
    """A file that lies there is copied and checked; a damaged one is fetched anew."""
    from huggingface_hub import snapshot_download

    snapshot = Path(snapshot_download(NAME))
    hub.requests.clear()
    store.remove(store.pull(NAME))
    assert hub.downloads(WEIGHTS) == []

    path = (snapshot / WEIGHTS).resolve()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    store.pull(NAME)
    assert len(hub.downloads(WEIGHTS)) == 1


def test_without_a_network_on_purpose_nothing_is_tried_again(
    hub: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HF_HUB_OFFLINE` makes a model that is not there an error that no restart repairs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.is_down = True
    with pytest.raises(WeightsError, match="not in the local cache"):
        store.pull(NAME)


def test_an_unreachable_hub_can_be_tried_again(hub: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens, the error says what was asked for."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="owner/model: is not in the local cache and cannot be fetched"):
        store.pull(NAME)
    assert hub.requests == []
