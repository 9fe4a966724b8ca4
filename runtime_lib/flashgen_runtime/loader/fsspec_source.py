"""Checkpoints in a store that fsspec reads: s3://, gs://, https://."""

import json
from collections.abc import Iterator
from typing import Any

from flashgen_runtime.errors import DownloadError, WeightsError
from flashgen_runtime.loader.checkpoint import INDEX_NAME, WEIGHTS_NAME, first_line
from flashgen_runtime.loader.remote_files import RemoteFile, digest_of, is_wanted

# Of one request; each of the threads holds one.
CHUNK_BYTES = 16 << 20

# Scheme → the package that speaks it, and our extra that brings it.
FSSPEC_PACKAGES = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "https": ("aiohttp", "https"),
    "http": ("aiohttp", "https"),
}

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

# Under one of these names the file systems say what changes when a file changes.
_VERSION_KEYS = ("ETag", "etag", "generation", "LastModified", "mtime")


class FsspecSource:
    """A folder that fsspec reads."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._scheme = uri.partition("://")[0]
        try:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            files, root = url_to_fs(self.uri)
        except ImportError as error:
            package, extra = FSSPEC_PACKAGES[self._scheme]
            problem = f"needs a package that is not installed: pip install {package} (or flashgen-runtime[{extra}])"
            raise WeightsError(uri, problem) from error
        self._files: Any = files
        self._root = root.rstrip("/")

        # Files of web servers that know no ranges.
        self._whole: set[str] = set()
        self.files = self.list_files()

    @property
    def revision(self) -> str:
        return digest_of(self.files)

    def list_files(self) -> list[RemoteFile]:
        try:
            self._files.invalidate_cache()
            files = self._ask_for_files() if self._scheme in ("https", "http") else self._find_files()
        except (WeightsError, DownloadError):
            raise
        except FileNotFoundError as error:
            raise WeightsError(self.uri, "no such place") from error
        # Every file system raises errors of its own.
        except Exception as error:
            raise DownloadError(self.uri, first_line(error)) from error
        if not files:
            raise WeightsError(self.uri, "has no files of a checkpoint")
        return files

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        chunks = self._stream(file, start) if file.name in self._whole else self._ranges(file, start)
        try:
            yield from chunks
        except (DownloadError, GeneratorExit):
            raise
        # As above.
        except Exception as error:
            raise DownloadError(f"{self.uri}/{file.name}", first_line(error)) from error

    def _ranges(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        while start < file.size:
            end = min(start + CHUNK_BYTES, file.size)
            chunk: bytes = self._files.cat_file(f"{self._root}/{file.name}", start=start, end=end)
            if len(chunk) > end - start:
                raise DownloadError(f"{self.uri}/{file.name}", "the server answers with other bytes than it was asked")
            if not chunk:
                return
            yield chunk
            start += len(chunk)

    def _stream(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """Everything from the first byte on, as the server knows nothing else."""
        skip = start
        with self._files.open(f"{self._root}/{file.name}", "rb", block_size=0) as content:
            while chunk := content.read(CHUNK_BYTES):
                yield chunk[skip:]
                skip = max(0, skip - len(chunk))

    def _find_files(self) -> list[RemoteFile]:
        found: dict[str, Any] = self._files.find(self._root, detail=True)
        names = {path[len(self._root) + 1 :]: entry for path, entry in sorted(found.items())}
        return [_listed(name, entry) for name, entry in names.items() if is_wanted(name)]

    def _ask_for_files(self) -> list[RemoteFile]:
        files = [file for name in WEB_NAMES if (file := self._ask_for(name)) is not None]
        names = {file.name for file in files}
        if INDEX_NAME in names and WEIGHTS_NAME not in names:
            files += [file for shard in self._shards() if (file := self._ask_for(shard)) is not None]
        if "config.json" not in names:
            raise WeightsError(self.uri, "has no `config.json`")
        return files

    def _shards(self) -> list[str]:
        try:
            names = sorted(set(json.loads(self._files.cat_file(f"{self._root}/{INDEX_NAME}"))["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise WeightsError(f"{self.uri}/{INDEX_NAME}", f"is no index of weights: {first_line(error)}") from error
        return [name for name in names if isinstance(name, str) and is_wanted(name)]

    def _ask_for(self, name: str) -> RemoteFile | None:
        try:
            entry = self._files.info(f"{self._root}/{name}")
        except FileNotFoundError:
            return None
        if not entry.get("partial"):
            self._whole.add(name)
        if entry.get("size") is None:
            raise WeightsError(f"{self.uri}/{name}", "the server does not say how long it is")
        return _listed(name, entry)


def _listed(name: str, entry: dict[str, Any]) -> RemoteFile:
    version = next((str(entry[key]) for key in _VERSION_KEYS if entry.get(key)), "")
    return RemoteFile(name, int(entry["size"]), version)
