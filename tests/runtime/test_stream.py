"""A stream brings the bytes of files in the order in which they are needed, or says why it cannot."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashgen_runtime.errors import WeightsError
from flashgen_runtime.loader.memory import STRIPE_BYTES
from flashgen_runtime.loader.stream import WeightStream, stream

STRIPE = STRIPE_BYTES


@dataclass(eq=False)
class FakeFile:
    """Notes what is fetched; fetches nothing before it may, and fails where it shall."""

    name: str
    size: int
    data_start: int = 100
    allowed: threading.Semaphore | None = None
    fails_at: int | None = None
    is_changed: bool = False
    fetched: list[tuple[int, int]] = field(default_factory=list)
    num_open: int = 0

    @property
    def path(self) -> Path:
        return Path(self.name)

    def begin(self) -> None:
        self.num_open += 1

    def fetch(self, start: int, end: int) -> None:
        assert self.num_open == 1
        if self.allowed is not None:
            self.allowed.acquire()
        if self.fails_at is not None and start <= self.fails_at < end:
            raise WeightsError(self.path, f"cannot be read at {self.fails_at}")
        self.fetched.append((start, end))

    def check(self) -> None:
        if self.is_changed:
            raise WeightsError(self.path, "was changed while it was read")

    def end(self) -> None:
        self.num_open -= 1


def has_returned(waiting: threading.Thread) -> bool:
    waiting.join(0.05)
    return not waiting.is_alive()


@pytest.fixture
def held() -> Iterator[tuple[FakeFile, WeightStream[FakeFile]]]:
    """A file of four stripes, needed from its end, each of which comes when it is allowed to."""
    file = FakeFile("held", 4 * STRIPE, allowed=threading.Semaphore(0))
    order = [(file, number * STRIPE, (number + 1) * STRIPE) for number in (3, 2, 1)]
    with stream([file], order, threads=1).start() as arriving:
        yield file, arriving
        assert file.allowed is not None
        file.allowed.release(10)


def test_bytes_come_in_the_order_in_which_they_are_needed(held: tuple[FakeFile, WeightStream[FakeFile]]) -> None:
    """Waiting ends with the awaited range and does not wait for what stands behind it in the order."""
    file, arriving = held
    waiting = threading.Thread(target=arriving.wait_for, args=(file, 3 * STRIPE))
    waiting.start()
    assert file.allowed is not None

    file.allowed.release()
    assert not has_returned(waiting)
    file.allowed.release()

    waiting.join(5)
    assert file.fetched == [(3 * STRIPE, 4 * STRIPE), (2 * STRIPE, 3 * STRIPE)]
    assert not arriving.is_complete


def test_what_the_order_leaves_out_comes_last(held: tuple[FakeFile, WeightStream[FakeFile]]) -> None:
    """A stream is complete with every byte of its files, and lets go of them."""
    file, arriving = held
    assert file.allowed is not None

    file.allowed.release(4)
    arriving.wait()
    arriving.close()

    assert file.fetched[-1] == (0, STRIPE)
    assert arriving.is_complete
    assert file.num_open == 0


def test_closing_ends_the_threads_and_those_who_wait(held: tuple[FakeFile, WeightStream[FakeFile]]) -> None:
    """After `close` nothing is fetched any more, the file is closed, and waiting is an error."""
    file, arriving = held
    assert file.allowed is not None
    closing = threading.Thread(target=arriving.close)
    closing.start()

    with pytest.raises(WeightsError, match="was closed"):
        arriving.wait_for(file, STRIPE)
    file.allowed.release()
    closing.join(5)

    assert len(file.fetched) == 1
    assert file.num_open == 0


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_is_waited_for_has_arrived(data: st.DataObject) -> None:
    """Of any order of ranges, overlapping or not, every byte up to the awaited one is there; each comes once."""
    files = [FakeFile(f"{n}", data.draw(st.integers(101, 5 * STRIPE))) for n in range(data.draw(st.integers(1, 3)))]
    order = []
    for _ in range(data.draw(st.integers(0, 6))):
        file = data.draw(st.sampled_from(files))
        start = data.draw(st.integers(0, file.size))
        order.append((file, start, data.draw(st.integers(start, file.size))))

    with stream(files, order, threads=data.draw(st.integers(1, 3))).start() as arriving:
        for number, (file, start, end) in enumerate(order):
            if start == end:
                continue
            arriving.wait_for(file, end)
            # A later range with the same end is larger, and is what may be meant.
            if any(other is file and last == end for other, _, last in order[number + 1 :]):
                continue
            assert all(any(a <= byte < b for a, b in file.fetched) for byte in (start, (start + end) // 2, end - 1))
        arriving.wait()

    for file in files:
        fetched = sorted(file.fetched)
        assert fetched[0][0] <= file.data_start
        assert fetched[-1][1] == file.size
        assert all(end == start for (_, end), (start, _) in pairwise(fetched))
        assert file.num_open == 0


def test_an_error_reaches_all_who_wait_and_ends_the_stream() -> None:
    """What was read before it stays usable; nothing is said to be there that is not."""
    file = FakeFile("bad", 4 * STRIPE, fails_at=2 * STRIPE)

    with stream([file], threads=2).start() as arriving:
        arriving.wait_for(file, 2 * STRIPE)
        for end in (3 * STRIPE, 4 * STRIPE):
            with pytest.raises(WeightsError, match="cannot be read"):
                arriving.wait_for(file, end)

    assert not arriving.is_complete
    assert file.num_open == 0


def test_a_changed_file_is_found_before_its_last_byte_is_given() -> None:
    """Nobody finishes a computation with weights of two versions."""
    file = FakeFile("changed", 2 * STRIPE, is_changed=True)

    with stream([file], threads=2).start() as arriving:
        arriving.wait_for(file, STRIPE)
        with pytest.raises(WeightsError, match="was changed"):
            arriving.wait_for(file, 2 * STRIPE)


def test_a_file_that_does_not_open_closes_the_others() -> None:
    """No descriptor is left over."""
    good, bad = FakeFile("good", STRIPE), FakeFile("bad", STRIPE)

    def refuse() -> None:
        raise WeightsError(bad.path, "no such file")

    bad.begin = refuse  # type: ignore[method-assign]

    with pytest.raises(WeightsError, match="no such file"):
        stream([good, bad]).start()

    assert good.num_open == 0


def test_a_file_without_data_is_complete() -> None:
    """Nothing has to arrive."""
    file = FakeFile("empty", 100)

    with stream([file]).start() as arriving:
        arriving.wait()

    assert arriving.is_complete
    assert not file.fetched
