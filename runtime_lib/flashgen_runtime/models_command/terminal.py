"""What verbs write: lines, tables, amounts, and a bar of progress where somebody watches."""

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

_UNITS = ("B", "kB", "MB", "GB", "TB")
_BAR_WIDTH = 24
_REDRAW_SECONDS = 0.1

# Where nobody watches: a line for every tenth.
_TENTHS = 10


def say(line: str) -> None:
    """A result."""
    sys.stdout.write(f"{line}\n")


def complain(line: str) -> None:
    """Anything else."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def readable_bytes(num_bytes: float) -> str:
    """`1.5 GB`."""
    for unit in _UNITS[:-1]:
        if abs(num_bytes) < 999.5:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} {_UNITS[-1]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, *rows]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


class ProgressBar:
    """Shows how many bytes of a known number are done; `add` may be called from several threads.

    On a terminal it redraws one line, elsewhere it writes a line for every tenth.
    """

    def __init__(self, label: str, *, stream: TextIO = sys.stderr) -> None:
        self._label = label
        self._stream = stream
        self._is_watched = stream.isatty()
        self._lock = threading.Lock()
        self._total = 0
        self._done = 0
        self._shown_tenths = 0

        # When the last line was drawn, and since when bytes have been counted for the rate.
        self._drawn_at: float | None = None
        self._started_at = 0.0
        self._done_at_start = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_watched and self._drawn_at is not None:
            # The line gives way to what is said next.
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def start(self, total: int) -> None:
        """Says of how many bytes."""
        self._total = total
        self._started_at = time.monotonic()

    def add(self, num_bytes: int) -> None:
        """More bytes are done, or, negative, fewer."""
        with self._lock:
            if self._done == self._done_at_start:
                # What an earlier attempt has left comes in one piece and says nothing about the rate.
                self._started_at = time.monotonic()
                self._done_at_start = self._done + num_bytes
            self._done += num_bytes
            if self._is_watched:
                self._redraw()
            else:
                self._tell_tenth()

    def _redraw(self) -> None:
        now = time.monotonic()
        if self._drawn_at is not None and now - self._drawn_at < _REDRAW_SECONDS:
            return
        self._drawn_at = now
        self._stream.write(f"\r\x1b[K{self._line(now)}")
        self._stream.flush()

    def _line(self, now: float) -> str:
        share = min(1.0, self._done / self._total) if self._total else 1.0
        bar = "#" * int(share * _BAR_WIDTH)
        rate = (self._done - self._done_at_start) / max(now - self._started_at, 1e-3)
        left = "" if rate <= 0 else f"  {_readable_seconds((self._total - self._done) / rate)} left"
        amount = f"{readable_bytes(self._done)} of {readable_bytes(self._total)}"
        return f"{self._label} [{bar:.<{_BAR_WIDTH}}] {share:4.0%}  {amount}  {readable_bytes(rate)}/s{left}"

    def _tell_tenth(self) -> None:
        tenths = self._done * _TENTHS // self._total if self._total else 0
        if tenths > self._shown_tenths:
            self._shown_tenths = tenths
            self._stream.write(
                f"{self._label}: {readable_bytes(self._done)} of {readable_bytes(self._total)} "
                f"({tenths * 100 // _TENTHS} %)\n"
            )
            self._stream.flush()


def _readable_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
