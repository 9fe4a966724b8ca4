"""The parent of a worker: it has everything imported, forks the worker, and forks it anew when it crashes.

    supervisor ── fork server (one thread, imports, tokenizers) ── worker (event loop, engine, weights)
                     waits for signals and for the child              forked in some 10 ms

A child that comes from a process with more than one thread, or with one that ever ran a parallel operation of torch,
may hang for ever: the threads are gone, their locks and their pool are not. So the parent never computes, opens no
ZeroMQ context, runs no event loop, encodes nothing, and never touches a device; it counts its threads before each fork.

The two share a fate: the child dies with the parent at once, and the parent ends with the child's exit code, unless a
fresh child may help.
"""

import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flashgen_runtime import timings
from flashgen_runtime.errors import EXIT_CONFIG
from flashgen_runtime.logs import fields
from flashgen_runtime.metrics import worker_restarts

log = logging.getLogger(__name__)

# Before the second, third and fourth child; what crashes a fourth time in a row needs somebody else.
DELAYS_SECONDS = (0.1, 0.5, 2.5)

# A child that ran this long had started well: its crash counts as the first.
STEADY_SECONDS = 60.0

# Passed on to the child, SIGHUP excepted: it ends the parent, and the child with it.
_FORWARDED = frozenset({signal.SIGTERM, signal.SIGINT})
_AWAITED = _FORWARDED | {signal.SIGCHLD}

_PR_SET_PDEATHSIG = 1


def fork_worker(work_ahead: Callable[[], None]) -> None:
    """Returns in a process that is to become the worker: a child of this one, each time one is needed.

    The parent itself never returns; it ends as its last child did. Where forking would be unsafe, this process itself
    becomes the worker. Call it in the main thread, before anything else started one.

    Args:
        work_ahead: does what the worker would have to do else, and starts no thread; called before each fork.
    """
    if sys.platform != "linux":
        return
    # From now on, so that no signal is lost while modules are imported.
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    server = _ForkServer()
    work_ahead()
    while (reason := reason_against_fork()) is None:
        if server.forks():
            return
        work_ahead()
    log.warning("the worker runs without a fork server", extra=fields(reason=reason))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)


def reason_against_fork() -> str | None:
    """Why a child of this process might hang; `None` if it cannot."""
    threads = [_name_of(path) for path in Path("/proc/self/task").iterdir()]
    if len(threads) > 1:
        return f"the process has {len(threads)} threads: {', '.join(sorted(threads))}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised"
    return None


class _End(NamedTuple):
    """How a child ended."""

    # As `sys.exit` takes it; 128 and the signal's number for one that a signal ended.
    exit_code: int
    seconds: float


class _ForkServer:
    """The parent: one child at a time."""

    def __init__(self) -> None:
        self._num_forks = 0

        # Crashes in a row.
        self._crashes = 0
        self._is_ending = False

    def forks(self) -> bool:
        """`True` in a new child. In the parent `False` when the child has crashed and another one is due."""
        parent = os.getpid()
        # What is there now will stay, and a collection that touched it would copy it.
        gc.freeze()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _become_child(parent, num_forks=self._num_forks)
            return True
        self._num_forks += 1
        self._after_end(self._wait_for(child, began))
        return False

    def _wait_for(self, child: int, began: float) -> _End:
        """Passes signals on until the child has ended; buries whatever else ends, as the first process of a container
        must."""
        while True:
            number = signal.sigwait(_AWAITED)
            if number != signal.SIGCHLD:
                self._is_ending = True
                os.kill(child, number)
                continue
            for pid, status in _ended():
                if pid == child:
                    _kill_group(child)
                    code = os.waitstatus_to_exitcode(status)
                    return _End(code if code >= 0 else 128 - code, time.monotonic() - began)

    def _after_end(self, end: _End) -> None:
        """Returns when another child is due, else ends the process."""
        if self._is_ending and end.exit_code in (128 + number for number in _FORWARDED):
            # The signal came before the child was there to hear it: nothing was open.
            _leave(0)
        if self._is_ending or end.exit_code in (0, EXIT_CONFIG):
            _leave(end.exit_code)
        self._crashes = 0 if end.seconds >= STEADY_SECONDS else self._crashes
        if self._crashes == len(DELAYS_SECONDS):
            log.error("the worker keeps crashing", extra=fields(exit_code=end.exit_code))
            _leave(end.exit_code)
        delay = DELAYS_SECONDS[self._crashes]
        self._crashes += 1
        log.error("the worker crashed and starts again", extra=fields(exit_code=end.exit_code, seconds=delay))
        if signal.sigtimedwait(_FORWARDED, delay) is not None:
            _leave(0)


def _become_child(parent: int, *, num_forks: int) -> None:
    """Makes the forked process one of its own, which ends when its parent does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # It ended before it could take this process along.
        os._exit(1)
    # A group of its own: what a terminal or a supervisor sends to the parent's group comes from the parent, once.
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
    if num_forks:
        timings.restart()
    worker_restarts.set(num_forks)


def _ended() -> list[tuple[int, int]]:
    """Ids and statuses of all processes that have ended."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, status))


def _kill_group(child: int) -> None:
    """Ends what the child started and left behind, which might hold its ports."""
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _leave(exit_code: int) -> None:
    """Ends the parent without the destructors and handlers that belong to the worker."""
    logging.shutdown()
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(exit_code)


def _name_of(thread: Path) -> str:
    try:
        return (thread / "comm").read_text().strip()
    except OSError:
        return thread.name
