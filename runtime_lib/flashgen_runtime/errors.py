"""The runtime's exceptions, each built from data and writing its own message.

ServingError
├── ConfigError            the configuration file is missing or wrong: exit 78
├── WeightsError           a weight file is missing, truncated or lies: exit 78
│   └── NotWrittenError        a file of ours cannot be written
├── DownloadError          a checkpoint could not be fetched now: exit 1, the next start may succeed
│   └── DiskFullError          there is no room for it
├── DeviceError            the device is not what the configuration asks for: exit 78
├── FrameError             a message of the transport is malformed or too large
└── RequestError           one request cannot be served; `kind` says why
    └── WorkerLostError         the worker or the connection to it ended while the request was open
"""

from pathlib import Path

from flashgen_runtime.messages import FailureKind

# sysexits.h, EX_CONFIG: a supervisor does not start the process again.
EXIT_CONFIG = 78


class ServingError(Exception):
    """Base of everything that the runtime raises on purpose."""


class ConfigError(ServingError):
    """The configuration file does not say what a process needs."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class WeightsError(ServingError):
    """A file of a checkpoint cannot be used."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class NotWrittenError(WeightsError):
    """A file of weights could not be written, as on a full disk; nothing of it stays."""

    def __init__(self, path: Path | str, error: OSError) -> None:
        super().__init__(path, f"cannot be written: {error.strerror or error}")


class DownloadError(ServingError):
    """A checkpoint could not be fetched; unlike a wrong name, another attempt may succeed."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem


class DiskFullError(DownloadError):
    """A checkpoint does not fit on the disk; what has arrived of it stays for the next attempt."""

    def __init__(self, name: str, folder: Path, *, needed: int | None = None, free: int | None = None) -> None:
        numbers = "" if needed is None else f": it takes {needed} bytes more, {free} are left"
        super().__init__(name, f"there is no room for it on the disk of {folder}{numbers}")
        self.folder = folder
        self.needed = needed
        self.free = free


class DeviceError(ServingError):
    """The machine's device falls short of what the configuration declares."""

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected = expected
        self.found = found


class FrameError(ServingError):
    """One message of the transport cannot be written or read; the connection is fine."""

    def __init__(self, problem: str, *, num_bytes: int) -> None:
        super().__init__(f"a frame of {num_bytes} bytes {problem}")
        self.problem = problem
        self.num_bytes = num_bytes


class RequestError(ServingError):
    """One request cannot be served; the process and all other requests are fine."""

    def __init__(self, message: str, *, kind: FailureKind, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.param = param


class WorkerLostError(RequestError):
    """The worker, or the connection to it, ended while the request was open."""

    def __init__(self, address: str) -> None:
        super().__init__(f"the worker at {address} was lost while it served the request", kind="unavailable")
        self.address = address
