"""What a worker process reads from its environment."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flashgen_runtime.config import ServerConfig
from flashgen_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Where things are, and which ports a worker takes."""

    # FLASHGEN_CONFIG
    config_path: Path = Path("config/service.yaml")

    # FLASHGEN_MODELS: one folder per local model.
    models_folder: Path = Path("models")

    # FLASHGEN_BIND_HOST: for both ports.
    bind_host: str = "0.0.0.0"

    # FLASHGEN_RPC_PORT and FLASHGEN_WORKER_OPERATIONS_PORT; `None` takes the configuration file's.
    rpc_port: int | None = None
    operations_port: int | None = None

    # FLASHGEN_DRAIN_SECONDS: how long open requests may take to finish after SIGTERM.
    drain_seconds: float = 30.0

    # FLASHGEN_FORK_SERVER: whether the process forks its worker; "0" has it be the worker itself.
    has_fork_server: bool = True

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "WorkerSettings":
        """Settings from variables; a variable that is unset or empty keeps its default. Raises `ConfigError`."""
        default = cls()
        return cls(
            config_path=Path(environ.get("FLASHGEN_CONFIG") or default.config_path),
            models_folder=Path(environ.get("FLASHGEN_MODELS") or default.models_folder),
            bind_host=environ.get("FLASHGEN_BIND_HOST") or default.bind_host,
            rpc_port=_port(environ, "FLASHGEN_RPC_PORT"),
            operations_port=_port(environ, "FLASHGEN_WORKER_OPERATIONS_PORT"),
            drain_seconds=_seconds(environ, "FLASHGEN_DRAIN_SECONDS", default=default.drain_seconds),
            has_fork_server=_switch(environ, "FLASHGEN_FORK_SERVER", default=default.has_fork_server),
        )

    def rpc_port_of(self, server: ServerConfig) -> int:
        return server.rpc_port if self.rpc_port is None else self.rpc_port

    def operations_port_of(self, server: ServerConfig) -> int:
        return server.operations_port if self.operations_port is None else self.operations_port


def _port(environ: Mapping[str, str], variable: str) -> int | None:
    text = environ.get(variable)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ConfigError(variable, f"expected a port from 0 to 65535, found {text!r}")
    return int(text)


def _seconds(environ: Mapping[str, str], variable: str, *, default: float) -> float:
    text = environ.get(variable)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(variable, f"expected a number of seconds, found {text!r}")
    return seconds


def _switch(environ: Mapping[str, str], variable: str, *, default: bool) -> bool:
    text = environ.get(variable)
    if not text:
        return default
    if text not in ("0", "1"):
        raise ConfigError(variable, f"expected 0 or 1, found {text!r}")
    return text == "1"
