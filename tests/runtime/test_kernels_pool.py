"""The kernels' thread pool: every piece once, whoever calls, however many threads there are."""

import ctypes
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from flashgen_runtime.kernels import library as kernels
from flashgen_runtime.kernels.panels import WeightFormat, linear, pack

pytestmark = pytest.mark.skipif(not kernels.isas(), reason="no kernels for this processor")

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)

FORK = """
import os, torch
from flashgen_runtime.kernels import library as kernels
from flashgen_runtime.kernels.panels import WeightFormat, linear, pack

kernels.set_num_threads(3)
panels, x = pack(torch.randn(400, 64), WeightFormat.F32), torch.randn(40, 64)
expected = linear(x, panels)
child = os.fork()
if child == 0:
    os._exit(0 if all(torch.equal(linear(x, panels), expected) for _ in range(50)) else 1)
assert torch.equal(linear(x, panels), expected)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    kernels.set_num_threads(3)
    yield
    kernels.set_num_threads(torch.get_num_threads())


def parallel(count: int, grain: int, body: Callable[[int, int, int], None]) -> None:
    """`fg_parallel` of sources/parallel.h."""
    library = kernels.library()
    assert library is not None, "the module is skipped without kernels"
    task = TASK(lambda _, first, last, thread: body(first, last, thread))
    run = ctypes.CDLL(str(library.path)).fg_parallel
    run.argtypes = [ctypes.c_int64, ctypes.c_int64, TASK, ctypes.c_void_p]
    run(count, grain, task, None)


def test_every_index_comes_once() -> None:
    """Pieces cover the range without overlap, are no larger than the grain, and thread numbers are below the count."""
    chooser = random.Random(0)
    for _ in range(100):
        count, grain = chooser.randrange(60), chooser.randrange(1, 9)
        pieces: list[tuple[int, int, int]] = []

        parallel(count, grain, lambda *piece, pieces=pieces: pieces.append(piece))

        assert sorted(i for first, last, _ in pieces for i in range(first, last)) == list(range(count))
        assert all(last - first <= grain and 0 <= thread < 3 for first, last, thread in pieces)


def test_a_slow_piece_does_not_hold_up_the_others() -> None:
    """While one thread is busy with a piece, the others take the rest."""
    others_done = threading.Event()
    left = [19]

    def body(first: int, last: int, thread: int) -> None:
        del last, thread
        if first == 0:
            assert others_done.wait(timeout=10)
            return
        left[0] -= 1
        if left[0] == 0:
            others_done.set()

    parallel(20, 1, body)

    assert others_done.is_set()


def test_a_call_within_a_task_runs_alone() -> None:
    """It gets its whole range at once, on the same thread."""
    inner: list[tuple[int, int, int, int]] = []

    def body(first: int, last: int, thread: int) -> None:
        del last
        parallel(10, 1, lambda *piece: inner.append((first, *piece)) if piece[2] == thread else None)

    parallel(6, 1, body)

    assert sorted(piece[:3] for piece in inner) == [(i, 0, 10) for i in range(6)]


def test_callers_take_turns() -> None:
    """Calls from several threads give each caller its own result, while a fifth changes the number of threads."""
    layers = [(pack(torch.randn(200, 48), WeightFormat.F32), torch.randn(rows, 48)) for rows in (1, 7, 30, 50)]
    expected = [linear(x, panels) for panels, x in layers]
    wrong: list[int] = []
    end = time.monotonic() + 1.0

    def call(index: int) -> None:
        panels, x = layers[index]
        while time.monotonic() < end:
            if not torch.equal(linear(x, panels), expected[index]):
                wrong.append(index)

    callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for caller in callers:
        caller.start()
    chooser = random.Random(0)
    while time.monotonic() < end:
        kernels.set_num_threads(chooser.randrange(1, 6))
    for caller in callers:
        caller.join()

    assert not wrong


def test_a_child_of_fork_has_threads_of_its_own() -> None:
    """Kernels work in both processes after a fork, though only the forking thread comes along."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], env=environment, timeout=60, check=False)
    assert done.returncode == 0


def test_threads_without_work_sleep() -> None:
    """A moment after the last kernel the process uses no processor time."""
    parallel(3, 1, lambda *_: None)
    time.sleep(0.05)
    before = time.process_time()

    time.sleep(0.3)

    assert time.process_time() - before < 0.05


def test_the_number_of_threads_can_be_asked() -> None:
    """What is set is what the kernels report; less than one is refused."""
    library = kernels.library()
    assert library is not None, "the module is skipped without kernels"
    assert library.num_threads() == 3
    with pytest.raises(ValueError, match="at least one thread"):
        kernels.set_num_threads(0)


def test_an_unknown_instruction_set_is_refused() -> None:
    """The message names those that there are."""
    with pytest.raises(ValueError, match=kernels.isas()[0]):
        kernels.select_isa("mmx")
