"""Where checkpoints come from: the hub, a local folder, or a store that fsspec reads (s3://, gs://, https://).

A source lists its files and fetches them one by one into a folder. Fetching goes on where an earlier attempt ended, as
long as the file is still the same one.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flashgen_runtime.errors import DownloadError, WeightsError
from flashgen_runtime.loader.checkpoint import HUB_PATTERNS, INDEX_NAME, WEIGHTS_NAME, first_line

# Bytes that have arrived since the last call.
Progress = Callable[[int], None]

CHUNK_BYTES = 4 << 20

# A web server lists no folder, so these are asked for one by one; those that are not there are left out.
WEB_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    WEIGHTS_NAME,
    INDEX_NAME,
)

_FOLDER_BEGINNINGS = ("/", "./", "../", "~", "file:")

_FSSPEC_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "https": "aiohttp", "http": "aiohttp"}


class RemoteFile(NamedTuple):
    """A file of a checkpoint before it is fetched."""

    # Relative to the checkpoint's folder, with "/".
    name: str
    size: int

    # Hexadecimal, where the source knows it.
    sha256: str | None

    # Changes when the file changes: an entity tag, a commit, a time.
    version: str


class Source(Protocol):
    """One checkpoint somewhere."""

    @property
    def uri(self) -> str:
        """Its address, the same from every working directory."""

    @property
    def revision(self) -> str:
        """What exactly is fetched: a commit of the hub; empty where the source has no such thing."""

    def list_files(self) -> list[RemoteFile]:
        """What belongs to the checkpoint; raises `WeightsError` or `DownloadError`."""

    def fetch(self, file: RemoteFile, folder: Path, progress: Progress) -> None:
        """Makes `folder / file.name` complete; raises `DownloadError`, or `OSError` for trouble with the target."""


def source_of(uri: str, revision: str | None = None) -> Source:
    """The source that a model's `uri` means; raises `WeightsError` for one that means none."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme in _FSSPEC_PACKAGES:
        return FsspecSource(uri)
    if separator and scheme != "file":
        raise WeightsError(uri, f"`{scheme}://` is not among hub ids, folders, s3://, gs:// and https://")
    if uri.startswith(_FOLDER_BEGINNINGS):
        return FolderSource(Path(canonical_uri(uri)))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", uri):
        return HubSource(uri, revision)
    raise WeightsError(
        uri, "is neither `owner/name` on the hub nor a folder (`./name`) nor an address (s3://, https://)"
    )


def canonical_uri(uri: str) -> str:
    """An address that means the same from every working directory: folders as absolute paths."""
    if not uri.startswith(_FOLDER_BEGINNINGS):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://").removeprefix("file:")).expanduser().absolute())


class HubSource:
    """A repository on the hub at one commit."""

    def __init__(self, repository: str, revision: str | None) -> None:
        self.uri = repository
        self._repository = repository
        self._info = _hub_info(repository, revision)

    @property
    def revision(self) -> str:
        return str(self._info.sha)

    def list_files(self) -> list[RemoteFile]:
        return [
            RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None, self.revision)
            for file in self._info.siblings
            if is_wanted(file.rfilename)
        ]

    def fetch(self, file: RemoteFile, folder: Path, progress: Progress) -> None:
        from httpx import HTTPError
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            # It keeps unfinished parts in `folder/.cache` and goes on from there.
            hf_hub_download(self._repository, file.name, revision=self.revision, local_dir=folder)
        except (HfHubHTTPError, HTTPError) as error:
            raise DownloadError(f"{self._repository}/{file.name}", first_line(error)) from error
        progress(file.size)


class FolderSource:
    """A folder of this machine."""

    revision = ""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder.absolute())
        self._folder = folder
        if not folder.is_dir():
            raise WeightsError(folder, "no such folder")

    def list_files(self) -> list[RemoteFile]:
        paths = sorted(path for path in self._folder.rglob("*") if path.is_file())
        names = {path.relative_to(self._folder).as_posix(): path.stat() for path in paths}
        return [
            RemoteFile(name, found.st_size, None, str(found.st_mtime_ns))
            for name, found in names.items()
            if is_wanted(name)
        ]

    def fetch(self, file: RemoteFile, folder: Path, progress: Progress) -> None:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._folder / file.name, target)
        progress(file.size)


class FsspecSource:
    """A folder that fsspec reads."""

    revision = ""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._scheme = uri.partition("://")[0]
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            files, root = url_to_fs(self.uri)
        except ImportError as error:
            package = _FSSPEC_PACKAGES[self._scheme]
            raise WeightsError(uri, f"needs a package that is not installed: pip install {package}") from error
        self._files: Any = files
        self._root = root.rstrip("/")

    def list_files(self) -> list[RemoteFile]:
        try:
            if self._scheme in ("https", "http"):
                return self._ask_for_files()
            found: dict[str, Any] = self._files.find(self._root, detail=True)
        # Every file system raises errors of its own.
        except Exception as error:
            raise DownloadError(self.uri, first_line(error)) from error
        names = {path[len(self._root) + 1 :]: entry for path, entry in sorted(found.items())}
        files = [_remote_file(name, entry) for name, entry in names.items() if is_wanted(name)]
        if not files:
            raise WeightsError(self.uri, "has no files of a checkpoint")
        return files

    def fetch(self, file: RemoteFile, folder: Path, progress: Progress) -> None:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        start = _resume_at(target, file)
        progress(start)
        with target.open("ab") as output:
            while start < file.size:
                chunk = self._read(file, start, min(start + CHUNK_BYTES, file.size))
                output.write(chunk)
                progress(len(chunk))
                start += len(chunk)

    def _read(self, file: RemoteFile, start: int, end: int) -> bytes:
        """The bytes `start` : `end`; raises `DownloadError`."""
        address = f"{self.uri}/{file.name}"
        try:
            chunk: bytes = self._files.cat_file(f"{self._root}/{file.name}", start=start, end=end)
        # Every file system raises errors of its own.
        except Exception as error:
            raise DownloadError(address, first_line(error)) from error
        if len(chunk) != end - start:
            raise DownloadError(address, f"ends at byte {start + len(chunk)}, expected {file.size}")
        return chunk

    def _ask_for_files(self) -> list[RemoteFile]:
        files = [file for name in WEB_NAMES if (file := self._ask_for(name)) is not None]
        names = {file.name for file in files}
        if INDEX_NAME in names and WEIGHTS_NAME not in names:
            index = json.loads(self._files.cat_file(f"{self._root}/{INDEX_NAME}"))
            shards = sorted(set(index["weight_map"].values()))
            files += [file for shard in shards if (file := self._ask_for(shard)) is not None]
        if "config.json" not in names:
            raise WeightsError(self.uri, "has no `config.json`")
        return files

    def _ask_for(self, name: str) -> RemoteFile | None:
        try:
            return _remote_file(name, self._files.info(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None


def is_wanted(name: str) -> bool:
    """Whether a file belongs to a checkpoint as we store it: no pickled weights, no code, nothing hidden or outside."""
    parts = name.split("/")
    if any(part in ("", "..") or part.startswith(".") for part in parts):
        return False
    return any(fnmatch(name, pattern) for pattern in HUB_PATTERNS)


def total_bytes(files: Iterable[RemoteFile]) -> int:
    """The sum of the files' sizes."""
    return sum(file.size for file in files)


def _remote_file(name: str, entry: dict[str, Any]) -> RemoteFile:
    version = next(
        (str(entry[key]) for key in ("ETag", "etag", "generation", "LastModified", "mtime") if entry.get(key)), ""
    )
    return RemoteFile(name, int(entry["size"] or 0), None, version)


def _resume_at(target: Path, file: RemoteFile) -> int:
    """The bytes of an earlier attempt that count; a part of another version, or of none, is thrown away."""
    note = target.with_name(f".{target.name}.version")
    if target.exists() and file.version and note.exists() and note.read_text() == file.version:
        return min(target.stat().st_size, file.size)
    target.unlink(missing_ok=True)
    note.write_text(file.version)
    return 0


def _hub_info(repository: str, revision: str | None) -> Any:
    # Deferred: local models need none of it.
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    name = repository if revision is None else f"{repository}@{revision}"
    try:
        return HfApi().model_info(repository, revision=revision, files_metadata=True)
    except GatedRepoError as error:
        raise WeightsError(name, "needs an access token of someone who was granted access (HF_TOKEN)") from error
    except RevisionNotFoundError as error:
        raise WeightsError(name, "the hub has the repository, but not this revision") from error
    except RepositoryNotFoundError as error:
        raise WeightsError(name, "no such repository on the hub, or it is private (HF_TOKEN)") from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise DownloadError(name, f"cannot be fetched from the hub: {first_line(error)}") from error
