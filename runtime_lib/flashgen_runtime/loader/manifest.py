"""What lies in the store: a checkpoint's manifest, written last and beside its files."""

from datetime import datetime
from pathlib import Path

import msgspec

from flashgen_runtime.errors import WeightsError

MANIFEST_NAME = "flashgen-manifest.json"

# In the metadata of prepared files (see `loader.prepared`): the checkpoint's folder.
CHECKPOINT_KEY = "flashgen.checkpoint"


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a stored checkpoint."""

    # Relative to the checkpoint's folder, with "/".
    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a stored checkpoint is and where it came from."""

    uri: str

    # What exactly was fetched: the hub's commit; elsewhere a digest of the files' names, sizes and versions.
    revision: str
    pulled: datetime
    files: list[StoredFile]

    # What was asked for when that was no commit: a branch or a tag. Empty: whatever was newest.
    reference: str = ""

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint that is there."""

    name: str
    path: Path
    manifest: Manifest


class PreparedElsewhere(msgspec.Struct, frozen=True, kw_only=True):
    """What was prepared from a checkpoint that is not in the store."""

    name: str

    # The checkpoint's folder; empty where the files do not tell.
    checkpoint: str
    files: list[Path]


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint's folder; raises `WeightsError`."""
    file = path / MANIFEST_NAME
    try:
        return msgspec.json.decode(file.read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        problem = f"cannot be read: {error}; remove its folder and pull the model again"
        raise WeightsError(file, problem) from error
