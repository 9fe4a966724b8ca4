"""What a cold start's time went into, with a clock that the tests move."""

import subprocess
import sys
import threading

import pytest

from flashgen_runtime import metrics, timings
from flashgen_runtime.timings import Timings


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def start(clock: Clock) -> Timings:
    return Timings(started=clock.now, clock=clock)


def test_stages_add_up_to_the_whole(start: Timings, clock: Clock) -> None:
    """What no stage claims is "other"."""
    with start.stage("imports"):
        clock.now += 2
    clock.now += 0.5
    with start.stage("weights"):
        clock.now += 1
    start.ready()

    assert start.seconds == {"imports": 2, "weights": 1, "other": 0.5}


def test_each_second_counts_once(start: Timings, clock: Clock) -> None:
    """A stage inside of another one is no part of the outer."""
    with start.stage("weights"):
        clock.now += 1
        with start.stage("imports"):
            clock.now += 4
        clock.now += 1

    assert start.seconds == {"imports": 4, "weights": 2}


def test_a_stage_that_fails_counts(start: Timings, clock: Clock) -> None:
    """A load that is tried again took its time all the same."""

    def fail() -> None:
        with start.stage("weights"):
            clock.now += 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert start.seconds == {"weights": 1}


def test_stages_of_threads_do_not_know_each_other(start: Timings, clock: Clock) -> None:
    """One thread's stage is not inside of another thread's."""

    def read() -> None:
        with start.stage("tokenizer"):
            clock.now += 1

    with start.stage("weights"):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()

    assert start.seconds == {"tokenizer": 1, "weights": 1}


def test_waiting_for_the_first_request_is_no_part_of_a_start(start: Timings, clock: Clock) -> None:
    """Steps until the first output are its warm-up; nothing counts after it."""
    clock.now += 1
    start.ready()
    clock.now += 3600
    start.step(0.25, has_output=False)
    start.step(0.25, has_output=True)
    start.step(9, has_output=True)
    with start.stage("weights"):
        clock.now += 9

    assert start.is_over
    assert start.seconds == {"warm_up": 0.5, "other": 1}


def test_stages_are_metrics(start: Timings, clock: Clock) -> None:
    """One gauge, labelled with the stage."""
    with start.stage("skeleton"):
        clock.now += 0.125
    start.ready()

    assert metrics.cold_start_seconds.labels("skeleton")._value.get() == 0.125


def test_a_start_is_one_line(start: Timings, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """When the worker is ready, and when its first token is out."""
    caplog.set_level("INFO")
    clock.now += 1
    start.ready()
    start.step(0.5, has_output=True)

    lines = [record.__dict__["fields"] for record in caplog.records]
    assert [(line["until"], line["seconds"]) for line in lines] == [("ready", "1.000"), ("first token", "1.500")]


def test_a_process_began_before_its_first_import() -> None:
    """The interpreter's own start counts."""
    program = "import time; time.sleep(0.3); from flashgen_runtime import timings; print(timings.current().seconds)"

    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert 0.3 <= eval(out)["interpreter"] < 30


def test_a_new_start_begins_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that was forked ready to serve."""
    monkeypatch.setattr(timings, "_current", timings.current())
    with timings.stage("imports"):
        pass

    timings.restart()

    assert timings.current().seconds == {}
