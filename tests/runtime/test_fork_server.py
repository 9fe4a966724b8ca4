"""The parent that forks workers: what it passes on, what it repairs, and what it must not have done before."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from flashgen_runtime.config import ServerConfig
from flashgen_runtime.errors import WorkerLostError
from tests.runtime.test_worker_process import WorkerProcess, connected, exit_of
from tests.runtime_workers import generate, in_state, model_config, replies_of, server_config, service_yaml, text_of

CODER = Path(__file__).parents[2] / "samples" / "models" / "stdlib-coder"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks only on Linux")

# An interpreter takes long to start when other tests have the machine.
SECONDS = 60.0

PROLOGUE = """
import os, signal, sys, time
from pathlib import Path
from flashgen_runtime.worker import fork_server
from flashgen_runtime.worker.fork_server import fork_worker

note = Path(sys.argv[1])

def say(word):
    with note.open("a") as file:
        file.write(f"{word} ")

fork_server.DELAYS_SECONDS = (0.01, 0.01, 0.01)
"""


class Program:
    """A small program around a fork server, in a process group of its own."""

    def __init__(self, folder: Path, body: str) -> None:
        self.note = folder / "note"
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + textwrap.dedent(body), str(self.note)],
            process_group=0,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, stderr = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, stderr

    @property
    def said(self) -> list[str]:
        return self.note.read_text().split() if self.note.exists() else []

    def wait_for_words(self, count: int) -> list[str]:
        deadline = time.monotonic() + SECONDS
        while len(self.said) < count:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)
        return self.said


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    started: list[Program] = []
    yield started
    for program in started:
        program.process.kill()
        program.process.communicate()


def start(programs: list[Program], folder: Path, body: str) -> Program:
    programs.append(Program(folder, body))
    return programs[-1]


def test_a_child_multiplies_with_several_threads(tmp_path: Path, programs: list[Program]) -> None:
    """After a parallel operation in the parent the child's first one hangs for ever: no import may run one."""
    program = start(
        programs,
        tmp_path,
        """
        from flashgen_runtime.worker import ahead

        def imports():
            ahead._import_torch()
            for name in (*ahead._FOR_ALL, *ahead._FOR_NATIVE_DECODERS, *ahead._FOR_TRANSFORMERS):
                ahead.import_module(name)
            say(len(os.listdir("/proc/self/task")))

        fork_worker(imports)
        import torch
        torch.set_num_threads(2)
        square = torch.ones(1024, 1024)
        say(int((square @ square)[0, 0]))
        """,
    )

    code, stderr = program.wait()

    assert (code, program.said) == (0, ["1", "1024"]), stderr
    assert "without a fork server" not in stderr


def test_a_process_with_threads_does_not_fork(tmp_path: Path, programs: list[Program]) -> None:
    """It becomes the worker itself, and says why."""
    program = start(
        programs,
        tmp_path,
        """
        import logging, threading
        logging.basicConfig(format="%(message)s %(fields)s")
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        before = os.getpid()
        fork_worker(lambda: None)
        say(os.getpid() == before)
        signal.signal(signal.SIGTERM, lambda *_: say("heard"))
        os.kill(before, signal.SIGTERM)
        """,
    )

    code, stderr = program.wait()

    assert (code, program.said) == (0, ["True", "heard"])
    assert "the process has 2 threads" in stderr


def test_a_crashed_child_is_followed_by_another(tmp_path: Path, programs: list[Program]) -> None:
    """It counts as a start of its own, and knows how many were before it."""
    program = start(
        programs,
        tmp_path,
        """
        from flashgen_runtime import metrics, timings
        fork_worker(lambda: None)
        say(int(metrics.worker_restarts._value.get()))
        if not metrics.worker_restarts._value.get():
            os.kill(os.getpid(), signal.SIGKILL)
        say(timings.current().seconds)
        """,
    )

    code, _ = program.wait()

    assert code == 0
    assert program.said == ["0", "1", "{}"]


def test_who_keeps_crashing_is_given_up(tmp_path: Path, programs: list[Program]) -> None:
    """A supervisor sees the child's exit code."""
    program = start(programs, tmp_path, "fork_worker(lambda: say('ahead')); say('start'); os._exit(5)")

    code, _ = program.wait()

    assert (code, program.said.count("start")) == (5, 4)


@pytest.mark.parametrize("code", [0, 78])
def test_an_end_that_is_meant_is_passed_on(tmp_path: Path, programs: list[Program], code: int) -> None:
    """Done, and what no restart repairs."""
    program = start(programs, tmp_path, f"fork_worker(lambda: None); say('start'); sys.exit({code})")

    assert program.wait()[0] == code
    assert program.said == ["start"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_for_the_group_reaches_the_child_once(tmp_path: Path, programs: list[Program], number: int) -> None:
    """A second one would end the worker without its open requests."""
    program = start(
        programs,
        tmp_path,
        f"""
        fork_worker(lambda: None)
        signal.signal({int(number)}, lambda *_: say("signal"))
        say("ready")
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            time.sleep(0.05)
        """,
    )
    program.wait_for_words(1)

    os.killpg(program.process.pid, number)

    assert program.wait()[0] == 0
    assert program.said == ["ready", "signal"]


def test_a_signal_before_there_is_a_child_ends_everything(tmp_path: Path, programs: list[Program]) -> None:
    """Nothing was open, so it is a good end."""
    program = start(
        programs, tmp_path, "fork_worker(lambda: os.kill(os.getpid(), signal.SIGTERM)); time.sleep(60); say('lived')"
    )

    assert program.wait()[0] == 0
    assert program.said == []


def test_the_child_dies_with_its_parent(tmp_path: Path, programs: list[Program]) -> None:
    """SIGKILL cannot be passed on."""
    program = start(programs, tmp_path, "fork_worker(lambda: None); say(os.getpid()); time.sleep(60)")
    (child,) = program.wait_for_words(1)

    program.process.kill()
    program.wait()

    wait_until_gone(int(child))


def test_what_a_child_started_ends_with_it(tmp_path: Path, programs: list[Program]) -> None:
    """It might hold the ports that the next child needs."""
    program = start(
        programs,
        tmp_path,
        """
        fork_worker(lambda: None)
        helper = os.fork()
        if helper == 0:
            time.sleep(60)
        say(helper)
        os._exit(0)
        """,
    )

    program.wait()

    wait_until_gone(int(program.said[0]))


def test_orphans_are_buried(tmp_path: Path, programs: list[Program]) -> None:
    """The first process of a container inherits them."""
    program = start(
        programs,
        tmp_path,
        """
        import ctypes
        PR_SET_CHILD_SUBREAPER = 36
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        fork_worker(lambda: None)
        reader, writer = os.pipe()
        if os.fork() == 0:
            orphan = os.fork()
            if orphan:
                os.write(writer, str(orphan).encode())
            os._exit(0)
        os.wait()
        orphan = Path("/proc", os.read(reader, 20).decode())
        deadline = time.monotonic() + 30
        while orphan.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        say("buried" if not orphan.exists() else "a zombie")
        """,
    )

    assert program.wait()[0] == 0
    assert program.said == ["buried"]


@pytest.mark.slow
def test_a_killed_worker_is_forked_anew(tmp_path: Path) -> None:
    """Its open request fails within a second, and the next one is answered by a process that imported nothing."""

    async def main() -> None:
        running = WorkerProcess(tmp_path)
        running.config_path.write_text(service_yaml(_server_of(CODER)))
        process = running.start(
            "-c",
            "from flashgen_runtime.worker import run_worker; run_worker('fake')",
            FLASHGEN_MODELS=str(CODER.parent),
            FLASHGEN_STORE=str(tmp_path / "store"),
        )
        try:
            async with connected(running) as connection:
                stream = connection.stream(generate("open", model=CODER.name, max_tokens=1500))
                await anext(stream)
                (child,) = _children(process.pid)

                os.kill(child, signal.SIGKILL)
                killed = time.monotonic()
                with pytest.raises(WorkerLostError):
                    [reply async for reply in stream]
                lost_after_seconds = time.monotonic() - killed
                await in_state(connection, "ready", timeout_seconds=SECONDS)
                replies = await replies_of(connection, generate("next", model=CODER.name))

                assert lost_after_seconds < 1
                assert text_of(replies)
                assert _children(process.pid) not in ([], [child])
                process.terminate()
                code, lines = await exit_of(process)
                assert code == 0
                assert any("the worker crashed and starts again" in line for line in lines)
        finally:
            process.kill()
            process.communicate()

    asyncio.run(main())


def _server_of(folder: Path) -> ServerConfig:
    model = replace(model_config(folder.name), dtype="auto")
    server = server_config(model)
    return replace(server, engine=replace(server.engine, block_size=32, kv_cache_bytes=1 << 26))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + SECONDS
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether a process runs; one that nobody has buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
