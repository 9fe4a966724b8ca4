"""Repositories on the hub, each at one commit.

huggingface_hub knows addresses, tokens, the proxy and what an answer means; the bytes we ask for ourselves, by range,
because its own downloads throw an unfinished part away when the process ends.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from flashgen_runtime.errors import DownloadError, WeightsError
from flashgen_runtime.loader.checkpoint import HUB_PATTERNS, first_line
from flashgen_runtime.loader.folder_source import HubCacheSource
from flashgen_runtime.loader.remote_files import RemoteFile, is_wanted

CHUNK_BYTES = 1 << 20
HTTP_PARTIAL_CONTENT = 206


class HubSource:
    """A repository on the hub at one commit."""

    def __init__(self, repository: str, revision: str | None) -> None:
        self.uri = repository
        info = _model_info(repository, revision)
        self.revision = str(info.sha)
        self.files = [_listed(file, self.revision) for file in info.siblings if is_wanted(file.rfilename)]

        # Files that were looked for in the hub's cache: the second time, the hub is asked.
        self._looked_for: set[str] = set()

    def list_files(self) -> list[RemoteFile]:
        """A commit does not change."""
        return self.files

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        cached = self._cached(file)
        if cached is None:
            yield from self._download(file, start)
            return
        with cached.open("rb", buffering=0) as content:
            content.seek(start)
            while chunk := content.read(CHUNK_BYTES):
                yield chunk

    def _cached(self, file: RemoteFile) -> Path | None:
        """The file as another program has fetched it, the first time that it is asked for."""
        from huggingface_hub import try_to_load_from_cache

        if file.name in self._looked_for:
            return None
        self._looked_for.add(file.name)
        found = try_to_load_from_cache(self.uri, file.name, revision=self.revision)
        return Path(found) if isinstance(found, str) and Path(found).stat().st_size == file.size else None

    def _download(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

        # Exported without saying so.
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        # Compressed bytes could not be counted, and a range of them means nothing.
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        if start == 0:
            del headers["Range"]
        url = hf_hub_url(self.uri, file.name, revision=self.revision)
        with _hub_errors(f"{self.uri}/{file.name}", "cannot be fetched from the hub"):
            stream = get_session().stream("GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT)
            with stream as response:
                hf_raise_for_status(response)
                skip = 0 if response.status_code == HTTP_PARTIAL_CONTENT else start
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    yield chunk[skip:]
                    skip = max(0, skip - len(chunk))


def cached_repository(repository: str, revision: str | None) -> HubCacheSource | None:
    """What the hub's own cache on this machine has of a repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(HUB_PATTERNS), local_files_only=True
        )
    except (LocalEntryNotFoundError, OSError):
        return None
    return HubCacheSource(repository, Path(folder))


def is_offline() -> bool:
    """Whether the user wants no look at the hub (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _listed(file: Any, commit: str) -> RemoteFile:
    if file.lfs:
        return RemoteFile(file.rfilename, file.lfs.size, commit, sha256=file.lfs.sha256)
    return RemoteFile(file.rfilename, file.size or 0, commit, git_sha1=file.blob_id)


def _model_info(repository: str, revision: str | None) -> Any:
    # Deferred: local models need none of it.
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    name = repository if revision is None else f"{repository}@{revision}"
    with _hub_errors(name, "is not in the local cache and cannot be fetched from the hub"):
        return HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=HF_HUB_ETAG_TIMEOUT)


@contextlib.contextmanager
def _hub_errors(name: str, problem: str) -> Iterator[None]:
    """Raises `WeightsError` for what no other attempt repairs, `DownloadError` otherwise."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # httpx in version 1, httpx2 in version 2.
    transport_error = cast("type[Exception]", HfHubHTTPError.__mro__[1])
    try:
        yield
    except GatedRepoError as error:
        raise WeightsError(name, "needs an access token of someone who was granted access (HF_TOKEN)") from error
    except RevisionNotFoundError as error:
        raise WeightsError(name, "the hub has the repository, but not this revision") from error
    except RepositoryNotFoundError as error:
        raise WeightsError(name, "no such repository on the hub, or it is private (HF_TOKEN)") from error
    except EntryNotFoundError as error:
        raise WeightsError(name, "the hub lists the file, but does not have it") from error
    except HFValidationError as error:
        raise WeightsError(name, f"is no name of a repository: {first_line(error)}") from error
    except (transport_error, OSError) as error:
        raise DownloadError(name, f"{problem}: {first_line(error)}") from error
