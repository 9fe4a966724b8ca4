"""Where checkpoints come from: the hub, a local folder, or a store that fsspec reads (s3://, gs://, https://)."""

import re
from pathlib import Path

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.folder_source import FolderSource
from flashgen_runtime.loader.fsspec_source import FSSPEC_PACKAGES, FsspecSource
from flashgen_runtime.loader.hub_source import HubSource
from flashgen_runtime.loader.remote_files import Source

_FOLDER_BEGINNINGS = ("/", "./", "../", "~", "file:")
_FOLDERS = (".", "..")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def source_of(uri: str, revision: str | None = None) -> Source:
    """The source that a model's `uri` means, listed.

    Raises:
        WeightsError: it means none, or there is nothing.
        DownloadError: nobody answers.
    """
    scheme, separator, _ = uri.partition("://")
    if separator and scheme in FSSPEC_PACKAGES:
        return FsspecSource(uri)
    if separator and scheme != "file":
        raise WeightsError(uri, f"`{scheme}://` is not among hub ids, folders, s3://, gs:// and https://")
    if is_folder(uri):
        return FolderSource(Path(canonical_uri(uri)))
    if is_hub_id(uri):
        return HubSource(uri, revision)
    raise WeightsError(
        uri, "is neither `owner/name` on the hub nor a folder (`./name`) nor an address (s3://, https://)"
    )


def canonical_uri(uri: str) -> str:
    """An address that means the same from every working directory: folders as absolute paths."""
    if not is_folder(uri):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://").removeprefix("file:")).expanduser().absolute())


def is_folder(uri: str) -> bool:
    """Whether it is the path of a folder."""
    return uri.startswith(_FOLDER_BEGINNINGS) or uri in _FOLDERS


def is_hub_id(uri: str) -> bool:
    """Whether it is `owner/name`."""
    return not is_folder(uri) and _HUB_ID.fullmatch(uri) is not None
