"""Where checkpoints come from beside the hub: folders, S3, web servers, and addresses that mean nothing."""

import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from flashgen_runtime.errors import DownloadError, WeightsError
from flashgen_runtime.loader import save_dict
from flashgen_runtime.loader.folder_source import FolderSource
from flashgen_runtime.loader.fsspec_source import FsspecSource
from flashgen_runtime.loader.remote_files import RemoteFile, is_wanted
from flashgen_runtime.loader.sources import canonical_uri, source_of
from flashgen_runtime.loader.store import Store
from tests.fake_s3 import CREDENTIALS, fake_s3, put

WEIGHTS = "model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_dict({"weight": torch.arange(10000.0)}, folder / WEIGHTS)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("flashgen_runtime.loader.fetch.PAUSE_SECONDS", 0.0)
    return Store(tmp_path / "store")


@pytest.mark.parametrize(
    "name",
    [
        "../config.json",
        "/config.json",
        ".git/config.json",
        "a//config.json",
        "model.bin",
        "consolidated.safetensors",
        "checkpoint-500/model.safetensors",
        "flashgen-manifest.json",
    ],
)
def test_unwanted_names_are_not_fetched(name: str) -> None:
    """Nothing is written outside of the model's folder, no pickles come, and no weights twice."""
    assert not is_wanted(name)


@pytest.mark.parametrize("uri", ["ftp://host/model", "name", "a/b/c"])
def test_uris_that_mean_nothing_are_refused(uri: str) -> None:
    """An address of no known kind is an error that says which kinds there are."""
    with pytest.raises(WeightsError, match="hub"):
        source_of(uri)


def test_a_changed_folder_is_another_model(store: Store, checkpoint: Path) -> None:
    """Pulling a folder again after a training run gives the new weights; the old ones stay until they are removed."""
    first = store.pull(str(checkpoint))
    assert store.pull(str(checkpoint)) == first
    save_dict({"weight": torch.zeros(10000)}, checkpoint / WEIGHTS)
    second = store.pull(str(checkpoint))

    assert first.manifest.revision != second.manifest.revision
    assert store.find_all(canonical_uri(str(checkpoint))) == [second, first]


def test_a_folder_that_changes_while_it_is_copied_is_no_model(store: Store, checkpoint: Path) -> None:
    """Half of one training run and half of another is refused."""

    class Changing(FolderSource):
        def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
            yield from super().read(file, start)
            if file.name == WEIGHTS:
                # Of the same length: whether the other thread has read it already makes no difference.
                (checkpoint / "config.json").write_text("[]")

    with pytest.raises(DownloadError, match="changed while"):
        store.pull(str(checkpoint), source=Changing(checkpoint))
    assert store.models() == []


def test_a_model_comes_from_s3(store: Store, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte arrives, an overwritten object makes another revision, and what is not there is said."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("flashgen_runtime.loader.fsspec_source.CHUNK_BYTES", 16384)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with fake_s3() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        put(url, "bucket")
        for path in checkpoint.iterdir():
            put(url, f"bucket/models/one/{path.name}", path.read_bytes())
        first = store.pull("s3://bucket/models/one")
        assert (first.path / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
        assert store.pull("s3://bucket/models/one/") == first

        put(url, "bucket/models/one/config.json", b'{"new": 1}')
        second = store.pull("s3://bucket/models/one")
        assert second.manifest.revision != first.manifest.revision
        for missing in ("s3://bucket/models/two", "s3://other/models"):
            with pytest.raises(WeightsError, match=r"no such place|no files"):
                store.pull(missing)
    # Nobody answers any more: the newest pull serves.
    assert store.pull("s3://bucket/models/one") == second


class RangeHandler(SimpleHTTPRequestHandler):
    """A web server that knows ranges, as most do; `SimpleHTTPRequestHandler` does not."""

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        start, _, end = asked.removeprefix("bytes=").partition("-")
        content = path.read_bytes()[int(start) : int(end) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


class PlainHandler(SimpleHTTPRequestHandler):
    """`python -m http.server`."""

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture(params=[RangeHandler, PlainHandler])
def web(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(request.param, directory=str(checkpoint)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_comes_from_a_web_server(
    store: Store, checkpoint: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known names are asked for, by ranges where the server knows them; shards are those that the index names."""
    monkeypatch.setattr("flashgen_runtime.loader.fsspec_source.CHUNK_BYTES", 16384)
    (checkpoint / WEIGHTS).rename(checkpoint / "model-1.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text('{"weight_map": {"weight": "model-1.safetensors"}}')

    model = store.pull(web)

    assert (model.path / "model-1.safetensors").read_bytes() == (checkpoint / "model-1.safetensors").read_bytes()
    assert [file.name for file in model.manifest.files] == [
        "config.json",
        "model.safetensors.index.json",
        "model-1.safetensors",
    ]
    with pytest.raises(WeightsError, match=r"config\.json"):
        store.pull(f"{web}/nothing")


@pytest.mark.parametrize("start", [0, 4, 10])
def test_a_web_server_goes_on_anywhere(web: str, checkpoint: Path, start: int) -> None:
    """With ranges or without, what follows a place is the file's rest."""
    (checkpoint / "config.json").write_bytes(b"0123456789")
    source = FsspecSource(web)
    (file,) = [file for file in source.files if file.name == "config.json"]

    assert b"".join(source.read(file, start)) == b"0123456789"[start:]


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(WeightsError, match=r"pip install gcsfs .*flashgen-runtime\[gs\]"):
        source_of("gs://bucket/model")


def test_a_source_that_ends_early_can_be_tried_again(store: Store, checkpoint: Path) -> None:
    """A file shorter than promised is trouble of the source, and the error says where it ended."""

    class Short(FolderSource):
        def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
            yield b"x" * max(0, 3 - start) if file.name == WEIGHTS else (checkpoint / file.name).read_bytes()[start:]

    with pytest.raises(DownloadError, match="ends at byte 3, expected"):
        store.pull(str(checkpoint), source=Short(checkpoint))
