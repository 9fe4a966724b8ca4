"""One-line `key=value` logs on stderr, through the standard library's logging."""

import json
import logging
import sys
import time

# Values that need no quotes: printable ASCII without white space, quotes, `=` and backslash.
_PLAIN = frozenset(chr(code) for code in range(0x21, 0x7F)) - set("\"'=\\`")


def setup_logs(process: str, *, level: int = logging.INFO) -> None:
    """Sends every log record of this process to stderr as one line; `process` says whose it is. Replaces handlers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """`extra` of a log call: pairs that follow the message, as in `log.info("ready", extra=fields(model=name))`."""
    return {"fields": values}


class KeyValueFormatter(logging.Formatter):
    """`time=… level=… process=… logger=… message="…"`, then `fields`, then `exception="…"` with escaped newlines."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        pairs: dict[str, object] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            pairs["exception"] = self.formatException(record.exc_info)
        return " ".join(f"{key}={_quoted(str(value))}" for key, value in pairs.items())


def _utc(seconds: float) -> str:
    """RFC 3339 with milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


def _quoted(value: str) -> str:
    if value and _PLAIN.issuperset(value):
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())
