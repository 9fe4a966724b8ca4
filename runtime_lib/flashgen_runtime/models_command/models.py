"""Which model of which store a command means."""

from argparse import Namespace
from pathlib import Path

from flashgen_runtime.loader.sources import is_folder
from flashgen_runtime.loader.store import Store, default_root


def store_of(options: Namespace) -> Store:
    """The store that `--store` or the environment names."""
    return Store(options.store or default_root())


def uri_of(text: str) -> str:
    """What a model's name means: a folder that is here goes before a repository of the hub with that name."""
    path = Path(text)
    return str(path.absolute()) if not is_folder(text) and "://" not in text and _is_checkpoint(path) else text


def _is_checkpoint(path: Path) -> bool:
    return (path / "config.json").is_file()
