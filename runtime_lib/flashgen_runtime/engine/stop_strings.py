"""Finds stop strings in text that arrives in pieces. Free of torch; knows no tokens."""

from typing import NamedTuple


class StopScan(NamedTuple):
    """What one more piece of text made certain."""

    # Text that can be handed out: no stop string begins in it.
    text: str
    is_stopped: bool


class StopStrings:
    """Passes text on up to the first stop string, and holds back an ending that may become one.

    The first stop string is the one that is complete first; of several that end at the same place, the longest. So the
    result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stop_strings: tuple[str, ...]) -> None:
        self._stop_strings = stop_strings
        self._held = ""

    def push(self, text: str) -> StopScan:
        """Takes a piece of text; the stop string itself and what follows it are dropped."""
        if not self._stop_strings:
            return StopScan(text, is_stopped=False)
        seen = self._held + text
        start = _start_of_first(self._stop_strings, seen)
        if start is not None:
            self._held = ""
            return StopScan(seen[:start], is_stopped=True)
        certain = len(seen) - max(_overlap(seen, stop) for stop in self._stop_strings)
        self._held = seen[certain:]
        return StopScan(seen[:certain], is_stopped=False)

    def flush(self) -> str:
        """What is still held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _start_of_first(stop_strings: tuple[str, ...], text: str) -> int | None:
    """Where the stop string begins that ends first in `text`."""
    starts = [(start + len(stop), start) for stop in stop_strings if (start := text.find(stop)) >= 0]
    return min(starts)[1] if starts else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest ending of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
