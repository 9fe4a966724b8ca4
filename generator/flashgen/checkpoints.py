"""What can be seen of a checkpoint in a local folder without loading it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from flashgen.protocols import FEATURE_EXTRACTION, TEXT_GENERATION

# A configuration is a few kilobytes; a tokenizer configuration with its added tokens can have megabytes.
_MAX_JSON_BYTES = 64 * 2**20


class Checkpoint(NamedTuple):
    """A folder as it is published on the hub."""

    folder: Path

    @property
    def problem(self) -> str | None:
        """Why no worker can load it, or `None`."""
        if not self.folder.exists():
            return "there is no such folder"
        if not self.folder.is_dir():
            return "it is not a folder"
        if not (self.folder / "config.json").is_file():
            return "the folder has no `config.json`"
        if not any(self.folder.glob("*.safetensors")):
            return "the folder has no `*.safetensors` file"
        return None

    @property
    def chat_template_source(self) -> str:
        """ "checkpoint", "none", or "unknown" where the tokenizer's configuration cannot be read."""
        if (self.folder / "chat_template.jinja").is_file() or (self.folder / "chat_template.json").is_file():
            return "checkpoint"
        path = self.folder / "tokenizer_config.json"
        if not path.exists():
            return "none"
        settings = _read_object(path)
        if settings is None:
            return "unknown"
        return "checkpoint" if settings.get("chat_template") else "none"

    @property
    def config(self) -> dict[str, Any]:
        """Its `config.json`, empty where that cannot be read."""
        return _read_object(self.folder / "config.json") or {}

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Its `tokenizer.json`, empty where that cannot be read."""
        return _read_object(self.folder / "tokenizer.json") or {}

    @property
    def task(self) -> str | None:
        """The task that the model class in `config.json` is for, or `None` for one that is not served."""
        architectures = self.config.get("architectures")
        name = architectures[0] if isinstance(architectures, list) and architectures else None
        if not isinstance(name, str):
            return None
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            return TEXT_GENERATION
        # Encoders are published as their bare class or with the head of their training: BertModel, BertForMaskedLM.
        return FEATURE_EXTRACTION if name.endswith(("Model", "ForMaskedLM")) else None


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
