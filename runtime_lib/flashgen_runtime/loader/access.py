"""How a worker reads weights, and what it checks before it uses them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flashgen_runtime.config import WeightsConfig
from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.aligned_file import CHECKSUM_KEY
from flashgen_runtime.loader.fetch import READ_BYTES
from flashgen_runtime.loader.manifest import MANIFEST_NAME, StoredModel, read_manifest
from flashgen_runtime.loader.memory import DEFAULT_THREADS
from flashgen_runtime.loader.opening import Mode, open_weights
from flashgen_runtime.loader.reader import OpenFile
from flashgen_runtime.loader.safetensors_header import SafetensorsHeader
from flashgen_runtime.loader.store import Store, default_root


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightAccess:
    """How weights come from the disk."""

    # Where prepared files lie, and models of the hub.
    store: Store

    # "auto" maps what lies in the store and reads all else into private memory, where nobody can change it.
    loader: Mode = "auto"
    threads: int = DEFAULT_THREADS
    verify: Literal["none", "size", "sha256"] = "size"

    # Whether a model may run on its checkpoint's rows while better ones are prepared: it takes the memory of both then.
    starts_with_rows: bool = True

    @classmethod
    def of(cls, config: WeightsConfig) -> "WeightAccess":
        """As the configuration says; `FLASHGEN_STORE` wins over its folder."""
        is_configured = config.path is not None and not os.environ.get("FLASHGEN_STORE")
        root = Path(config.path) if config.path is not None and is_configured else default_root()
        return cls(store=Store(root), loader=config.loader, threads=config.threads, verify=config.verify)

    def open(self, path: Path) -> OpenFile:
        """A file of weights, nothing of it fetched yet; raises `WeightsError`."""
        return open_weights(path, self.loader)

    def check_checkpoint(self, path: Path) -> None:
        """Compares a model of the store with its manifest as far as `verify` says; raises `WeightsError`."""
        if self.verify == "none" or not (path / MANIFEST_NAME).is_file():
            return
        manifest = read_manifest(path)
        if self.verify == "sha256":
            self.store.verify(StoredModel(name=path.name, path=path, manifest=manifest))
            return
        for file in manifest.files:
            found = path / file.name
            if not found.is_file() or found.stat().st_size != file.size:
                problem = f"is not what was pulled, which had {file.size} bytes: remove the model and pull it again"
                raise WeightsError(found, problem)

    def is_sound(self, header: SafetensorsHeader) -> bool:
        """Whether a file with a checksum of ours passes it; `True` where `verify` does not ask for that."""
        if self.verify != "sha256":
            return True
        digest = hashlib.sha256()
        with header.path.open("rb", buffering=0) as file:
            file.seek(header.data_start)
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
        return digest.hexdigest() == header.metadata.get(CHECKSUM_KEY)
