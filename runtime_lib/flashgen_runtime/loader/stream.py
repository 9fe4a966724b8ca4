"""Bytes of files that arrive in a given order, in the background, while somebody computes with those that are there.

Files are cut into stripes; several threads fetch them, first needed first. Nothing here knows whether a stripe is
mapped or read: a file says how (`StreamedFile`).
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.memory import DEFAULT_THREADS, STRIPE_BYTES


class StreamedFile(Protocol):
    """A file whose bytes are fetched into memory by ranges. Offsets count from the file's beginning."""

    @property
    def path(self) -> Path: ...

    @property
    def data_start(self) -> int:
        """The first byte that has to be fetched."""

    @property
    def size(self) -> int: ...

    def begin(self) -> None:
        """Called once before all else; raises `WeightsError`."""

    def fetch(self, start: int, end: int) -> None:
        """Returns when the bytes `start` : `end` are in memory; several threads call it. Raises `WeightsError`."""

    def check(self) -> None:
        """Called when all bytes have arrived; raises `WeightsError` if the file has changed meanwhile."""

    def end(self) -> None:
        """Called last, whatever happened; what has been fetched stays."""


F = TypeVar("F", bound=StreamedFile)

# A file and a range of it, which somebody needs as a whole.
Need = tuple[F, int, int]


class WeightStream(Generic[F]):
    """Fetches files in the background from `start` on. Its threads end with the last byte, the first error or `close`.

    It lets go of its files when it ends: their memory lives as long as the tensors over it.
    """

    def __init__(self, files: Sequence[F], order: Sequence[Need[F]] | None = None, *, threads: int) -> None:
        """As `stream`."""
        self._plan = _Plan(files, order)
        self._num_threads = max(1, min(threads, len(self._plan.stripes)))
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        # All below is written under the condition's lock.
        self._next = 0
        self._num_running = 0
        self._has_arrived = [False] * len(self._plan.stripes)
        # So many stripes, from the first on, have arrived.
        self._num_arrived = 0
        self._is_complete = False
        self._is_closed = False
        self._failure: Exception | None = None

    def start(self) -> Self:
        """Begins to fetch; raises `WeightsError` if a file cannot be opened."""
        begun: list[F] = []
        try:
            for file in self._plan.files:
                file.begin()
                begun.append(file)
        except BaseException:
            for file in begun:
                file.end()
            raise
        self._threads = [
            threading.Thread(target=self._work, name=f"weights-{number}", daemon=True)
            for number in range(self._num_threads)
        ]
        self._num_running = len(self._threads)
        # A file without data has nothing to wait for.
        self._is_complete = not self._has_arrived
        for thread in self._threads:
            thread.start()
        return self

    @property
    def files(self) -> Sequence[F]:
        """Empty when it has ended."""
        return self._plan.files

    @property
    def is_complete(self) -> bool:
        """Whether all bytes have arrived and no file has changed meanwhile."""
        return self._is_complete

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return self._plan.num_bytes

    def wait_for(self, file: F | int, end: int) -> None:
        """Returns when all that stands in the order up to the byte before `end` of a file has arrived.

        Costs a comparison once the stream is complete. With the last byte of all, the files have been found unchanged.

        Args:
            file: one of the stream's, or its place among them.
            end: an offset in the file, inside or at the end of one of the order's ranges.

        Raises:
            WeightsError: a file could not be read or has changed, or the stream was closed.
        """
        if not self._is_complete:
            self._wait(self._plan.num_stripes_to(file, end))

    def wait(self) -> None:
        """Returns when all has arrived; raises as `wait_for`."""
        if not self._is_complete:
            self._wait(len(self._has_arrived))

    def close(self) -> None:
        """Fetches no more, and returns when all threads have ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, num_stripes: int) -> None:
        assert self._threads, "a stream is started before somebody waits for it"
        with self._changed:
            while not self._is_complete and self._num_arrived < num_stripes:
                if self._failure is not None:
                    raise self._failure
                if self._is_closed:
                    raise WeightsError(self._plan.first_path, "was closed before all of it had arrived")
                self._changed.wait()

    def _work(self) -> None:
        try:
            while (number := self._take()) is not None:
                file, start, end = self._plan.stripes[number]
                file.fetch(start, end)
                self._arrived(number)
        # Whatever it is, those who wait shall know.
        except Exception as error:
            self._fail(error)
        finally:
            self._leave()

    def _take(self) -> int | None:
        with self._changed:
            if self._failure is not None or self._is_closed or self._next == len(self._has_arrived):
                return None
            self._next += 1
            return self._next - 1

    def _arrived(self, number: int) -> None:
        with self._changed:
            self._has_arrived[number] = True
            reached = self._num_arrived
            while reached < len(self._has_arrived) and self._has_arrived[reached]:
                reached += 1
            if reached == len(self._has_arrived):
                # Before anybody computes with the last bytes.
                for file in self._plan.files:
                    file.check()
                self._is_complete = True
            if reached > self._num_arrived:
                self._num_arrived = reached
                self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _leave(self) -> None:
        """The last thread to leave lets go of the files."""
        with self._changed:
            self._num_running -= 1
            if not self._num_running:
                for file in self._plan.forget():
                    file.end()


def stream(
    files: Sequence[F], order: Sequence[Need[F]] | None = None, *, threads: int = DEFAULT_THREADS
) -> WeightStream[F]:
    """A stream of files, not started yet.

    Args:
        files: all that the order names.
        order: ranges of files, those that are needed first before others. Whatever it leaves out follows at the end;
            `None` is the order of the files and of the bytes in them.
        threads: how many fetch at a time.
    """
    return WeightStream(files, order, threads=threads)


class _Plan(Generic[F]):
    """The order, cut into stripes that do not overlap: a stripe comes when the first range that touches it does."""

    def __init__(self, files: Sequence[F], order: Sequence[Need[F]] | None) -> None:
        self.files: Sequence[F] = files
        self.stripes: list[Need[F]] = []
        self.num_bytes = sum(file.size - file.data_start for file in files)
        self.first_path = files[0].path if files else Path()
        self._indices = {id(file): index for index, file in enumerate(files)}
        # Of each file: stripe number in it → place among all stripes.
        self._places: list[dict[int, int]] = [{} for _ in files]
        # Of each file, by their ends, smaller ones first: (end, -start, stripes that stand before it in the order).
        self._needs: list[list[tuple[int, int, int]]] = [[] for _ in files]
        num_needed = 0
        for need in chain(order or (), ((file, file.data_start, file.size) for file in files)):
            num_needed = self._add(need, num_needed)
        for needs in self._needs:
            needs.sort()

    def num_stripes_to(self, file: F | int, end: int) -> int:
        """So many stripes, from the first on, hold all that is needed up to the byte before `end`."""
        index = file if isinstance(file, int) else self._indices[id(file)]
        needs = self._needs[index]
        for _, negative_start, num_before in needs[bisect_left(needs, (end,)) :]:
            if -negative_start < end:
                return max(num_before, self._last_place(index, -negative_start, end) + 1)
        return 0

    def forget(self) -> Sequence[F]:
        """Gives the files away."""
        files, self.files, self.stripes = self.files, (), []
        return files

    def _add(self, need: Need[F], num_needed: int) -> int:
        file, start, end = need
        if not 0 <= start <= end <= file.size:
            raise ValueError(f"{file.path}: {start} to {end} is no range of its {file.size} bytes")
        if start == end:
            return num_needed
        index = self._indices[id(file)]
        self._needs[index].append((end, -start, num_needed))
        for number in _numbers(start, end):
            if number not in self._places[index]:
                self._places[index][number] = len(self.stripes)
                self.stripes.append((file, number * STRIPE_BYTES, min((number + 1) * STRIPE_BYTES, file.size)))
        return max(num_needed, self._last_place(index, start, end) + 1)

    def _last_place(self, index: int, start: int, end: int) -> int:
        return max(self._places[index][number] for number in _numbers(start, end))


def _numbers(start: int, end: int) -> Iterable[int]:
    """The stripes of a file that a range touches."""
    return range(start // STRIPE_BYTES, -(-end // STRIPE_BYTES))
