"""The names of a worker's models."""

from collections.abc import Iterable

from flashgen_runtime.config import ModelConfig
from flashgen_runtime.errors import ConfigError


def ids_by_name(configs: Iterable[ModelConfig]) -> dict[str, str]:
    """The id that each id and alias leads to; raises `ConfigError` if one leads to two."""
    ids: dict[str, str] = {}
    for config in configs:
        for name in (config.id, *config.aliases):
            if ids.setdefault(name, config.id) != config.id:
                raise ConfigError("service.yaml", f"the models `{ids[name]}` and `{config.id}` share the name `{name}`")
    return ids
