"""The systems that a benchmark compares, each a child process; only one of them runs at a time.

A child is stopped by signal whenever it is not its turn, so that no thread of it spins in another's measurement.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.models import CACHE, ROOT, ModelShape
from benchmarks.protocol import Generated
from benchmarks.workloads import Workload

# Loading and, for some, compiling for this processor.
START_SECONDS = 300.0
THREADS = os.cpu_count() or 1


class NotFinishedError(Exception):
    """A system did not answer within its time."""


class SystemFailedError(Exception):
    """A system died, raised, or gave another number of tokens than it was asked for."""


@dataclass(frozen=True, slots=True)
class System:
    """One engine at one precision."""

    name: str
    precision: str

    # Gives the child's command line; installs and converts whatever is missing.
    command: Callable[[ModelShape, str, int], list[str]]

    # Measured once, whatever the number of rounds: too slow for more.
    is_slow: bool = False


class Child:
    """A running system."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        logs = CACHE / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{name.replace(' ', '-').replace('/', '-')}.log"
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
                start_new_session=True,
            )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.settings = str(self._answer(START_SECONDS)["settings"])
        self._signal(signal.SIGSTOP)

    def ask(self, request: dict[str, object], *, limit_seconds: float) -> dict[str, Any]:
        """Lets it run until it answers; raises `NotFinishedError` or `SystemFailedError`, and is closed then."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._answer(limit_seconds)
        except OSError as error:
            raise SystemFailedError(f"{self.name} is gone; see {self.log}") from error
        self._signal(signal.SIGSTOP)
        return answer

    def generate(self, workload: Workload, *, limit_seconds: float) -> Generated:
        """Runs a workload; raises also when a request did not get its number of tokens."""
        request: dict[str, object] = {"prompts": workload.prompts, "output_lengths": workload.output_lengths}
        generated = Generated(**self.ask(request, limit_seconds=limit_seconds))
        if generated.num_tokens != workload.output_lengths:
            message = (
                f"{self.name}: {workload.name}: expected {workload.output_lengths} tokens, got {generated.num_tokens}"
            )
            raise SystemFailedError(message)
        return generated

    def close(self) -> None:
        """Ends the process and what it started; may be called again."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            # What a child that is gone did not read is lost.
            with suppress(OSError):
                assert pipe is not None
                pipe.close()

    def _answer(self, limit_seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=limit_seconds)
        except queue.Empty:
            self.close()
            raise NotFinishedError(f"{self.name} did not answer within {limit_seconds:.0f} s") from None
        if not line:
            self.close()
            raise SystemFailedError(f"{self.name} ended; see {self.log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            print(answer.get("traceback", ""), file=sys.stderr)
            raise SystemFailedError(f"{self.name}: {answer['error']}; see {self.log}")
        return answer

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)
