"""Keeps processes running on this machine: starts them, restarts those that crash, ends them all.

One thread and one loop. Each process has a process group of its own, so that Ctrl-C reaches only the supervisor, which
then ends the groups one after another: the first one first, so that an API server finishes its requests while the
workers behind it still answer.
"""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

# Configuration, weights or device are wrong (sysexits.h, EX_CONFIG): starting again would not help.
EXIT_CONFIG = 78

_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 30.0

# A process that ran this long had started well: its next crash counts as the first.
_STEADY_SECONDS = 60.0

_POLL_SECONDS = 0.25
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Command(NamedTuple):
    """A process to keep running."""

    # "worker stdlib-coder"
    name: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    folder: Path


class Milestone(NamedTuple):
    """Something that is waited for once."""

    # Asked until it is true for the first time; returns within about a second.
    is_reached: Callable[[], bool]

    # Called then.
    announce: Callable[[], None]


class Supervisor:
    """Runs commands until a signal comes. Use it in the main thread."""

    def __init__(self, commands: Sequence[Command], *, say: Callable[[str], None], grace_seconds: float) -> None:
        """`say` prints a line; `grace_seconds` is what each process may take to end."""
        self._children = [_Child(command, say) for command in commands]
        self._say = say
        self._grace_seconds = grace_seconds
        self._signals: list[int] = []

    def run(self, milestones: Sequence[Milestone]) -> int:
        """Serves until a signal comes, then ends everything; the exit code."""
        ahead = list(milestones)
        with self._woken_by_signals() as wait:
            try:
                for child in self._children:
                    child.start()
                while not self._signals and not self._is_over():
                    wait(_POLL_SECONDS)
                    for child in self._children:
                        child.attend()
                    reached = [milestone for milestone in ahead if milestone.is_reached()]
                    for milestone in reached:
                        ahead.remove(milestone)
                        milestone.announce()
                return self._exit_code()
            finally:
                self._end_all(wait)

    def _is_over(self) -> bool:
        """Whether the first process, which everything depends on, will not run again."""
        return self._children[0].is_given_up

    def _exit_code(self) -> int:
        if not self._signals:
            return EXIT_CONFIG
        # Ctrl-C is how one ends a server.
        return 0 if self._signals[0] == signal.SIGINT else 128 + self._signals[0]

    def _end_all(self, wait: Callable[[float], None]) -> None:
        if any(child.is_running for child in self._children):
            self._say("stopping: open requests may finish; Ctrl-C again ends them")
        for child in self._children:
            self._end(child, wait)

    def _end(self, child: "_Child", wait: Callable[[float], None]) -> None:
        deadline = time.monotonic() + self._grace_seconds
        child.signal(signal.SIGTERM)
        # The second signal of a user who does not want to wait.
        while child.is_running and len(self._signals) < 2 and time.monotonic() < deadline:
            wait(_POLL_SECONDS)
        if child.is_running and len(self._signals) < 2:
            self._say(f"{child.name} did not end within {self._grace_seconds:g} s and is killed")
        child.kill()

    @contextmanager
    def _woken_by_signals(self) -> Iterator[Callable[[float], None]]:
        """Gives a function that sleeps at most so many seconds, less when a signal comes or a child ends."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        # `nohup` ignores SIGHUP, and that is to stay so.
        heard = [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heard}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(reader, selectors.EVENT_READ)
                yield lambda seconds: _sleep(selector, reader, seconds)
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _note(self, number: int, _: object) -> None:
        self._signals.append(number)


class _Child:
    """One command and its process, restarted with back-off."""

    def __init__(self, command: Command, say: Callable[[str], None]) -> None:
        self.name = command.name
        self._command = command
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._restart_at: float | None = None
        self._crashes = 0
        self.is_given_up = False

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        command = self._command
        self._restart_at = None
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(
            command.argv,
            env=dict(command.environ),
            cwd=command.folder,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )

    def attend(self) -> None:
        """Notices an end, and starts the process again when it is time."""
        if self._restart_at is not None:
            if time.monotonic() >= self._restart_at:
                self.start()
        elif self._process is not None and not self.is_running and not self.is_given_up:
            self._after_end(self._process.returncode)

    def signal(self, number: int) -> None:
        """To the whole group; one that has ended is no error."""
        self._restart_at = None
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Ends the process and whatever it started, and waits for the process."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _after_end(self, code: int) -> None:
        # Helpers that it started must not outlive it and hold its ports.
        self.signal(signal.SIGKILL)
        if code == EXIT_CONFIG:
            self.is_given_up = True
            self._say(f"{self.name} cannot start: its configuration, weights or device are wrong (see above)")
            return
        now = time.monotonic()
        self._crashes = 1 if now - self._started_at > _STEADY_SECONDS else self._crashes + 1
        delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** (self._crashes - 1))
        self._restart_at = now + delay
        self._say(f"{self.name} {_describe(code)}; it starts again in {delay:g} s")


def _sleep(selector: selectors.BaseSelector, reader: int, seconds: float) -> None:
    if selector.select(seconds):
        with suppress(BlockingIOError):
            while os.read(reader, 512):
                pass


def _describe(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
