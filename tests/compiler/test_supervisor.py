import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flashgen.supervisor import Command, Milestone, Supervisor

# A process that serves until it is told to end.
SERVER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open(sys.argv[1], "a").write("started\\n")
signal.pause()
"""


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


class Fleet:
    """Supervises small Python programs and remembers what was said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.commands: list[Command] = []

    def add(self, name: str, program: str) -> None:
        """`program` finds in `sys.argv[1]` a file of its own."""
        argv = [sys.executable, "-S", "-c", textwrap.dedent(program), str(self.folder / name)]
        self.commands.append(Command(name=name, argv=argv, environ=dict(os.environ), folder=self.folder))

    def run(
        self, *, is_ready: Callable[[], bool], on_ready: Callable[[], None] | None = None, grace_seconds: float = 20
    ) -> int:
        """Until it is ready, then until `on_ready` has its effect: by default Ctrl-C."""
        supervisor = Supervisor(self.commands, say=self.said.append, grace_seconds=grace_seconds)
        return supervisor.run([Milestone(is_ready, on_ready or interrupt)])

    def starts(self, name: str) -> int:
        """How often a program of this name has started."""
        path = self.folder / name
        return path.read_text(encoding="utf-8").count("started") if path.exists() else 0


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_ctrl_c_ends_everything_cleanly(tmp_path: Path) -> None:
    """Exit code 0, and nobody is left."""
    fleet = Fleet(tmp_path)
    fleet.add("api", SERVER)
    fleet.add("worker", SERVER)

    code = fleet.run(is_ready=lambda: fleet.starts("api") == fleet.starts("worker") == 1)

    assert code == 0
    assert fleet.said == ["stopping: open requests may finish; Ctrl-C again ends them"]


def test_sigterm_ends_everything_and_says_so_in_the_code(tmp_path: Path) -> None:
    """As shells report it."""
    fleet = Fleet(tmp_path)
    fleet.add("api", SERVER)

    assert fleet.run(is_ready=lambda: fleet.starts("api") == 1, on_ready=terminate) == 128 + signal.SIGTERM


def test_the_api_ends_before_its_workers(tmp_path: Path) -> None:
    """Its open requests still need them."""
    fleet = Fleet(tmp_path)
    order = tmp_path / "order"
    for name in ("api", "worker"):
        fleet.add(
            name,
            f"""
            import signal, sys
            def end(*_):
                open({str(order)!r}, "a").write("{name} ")
                sys.exit(0)
            signal.signal(signal.SIGTERM, end)
            open(sys.argv[1], "a").write("started")
            signal.pause()
            """,
        )

    fleet.run(is_ready=lambda: fleet.starts("api") == fleet.starts("worker") == 1)

    assert order.read_text(encoding="utf-8") == "api worker "


def test_a_crashed_process_starts_again(tmp_path: Path) -> None:
    """After half a second the first time, and the crash is told."""
    fleet = Fleet(tmp_path)
    fleet.add("api", SERVER)
    fleet.add("worker", "import sys; open(sys.argv[1], 'a').write('started\\n'); sys.exit(3)")

    code = fleet.run(is_ready=lambda: fleet.starts("worker") == 2)

    assert code == 0
    assert fleet.said[0] == "worker ended with 3; it starts again in 0.5 s"
    assert fleet.starts("api") == 1


def test_a_killed_process_starts_again(tmp_path: Path) -> None:
    """SIGKILL is named."""
    fleet = Fleet(tmp_path)
    fleet.add("api", SERVER)
    fleet.add("worker", "import os, sys; open(sys.argv[1], 'a').write('started\\n'); os.kill(os.getpid(), 9)")

    fleet.run(is_ready=lambda: fleet.starts("worker") == 2)

    assert fleet.said[0] == "worker was ended by SIGKILL; it starts again in 0.5 s"


def test_each_crash_waits_twice_as_long(tmp_path: Path) -> None:
    """A process that cannot live does not keep the machine busy."""
    fleet = Fleet(tmp_path)
    fleet.add("api", SERVER)
    fleet.add("worker", "import sys; open(sys.argv[1], 'a').write('started\\n'); sys.exit(1)")

    fleet.run(is_ready=lambda: len(fleet.said) == 2)

    assert [line.rpartition(" in ")[2] for line in fleet.said[:2]] == ["0.5 s", "1 s"]


def test_a_wrong_configuration_is_not_tried_again(tmp_path: Path) -> None:
    """Exit 78 of a worker: said once, and the API stays up to say why."""
    fleet = Fleet(tmp_path)
    fleet.add("api", SERVER)
    fleet.add("worker", "import sys; open(sys.argv[1], 'a').write('started\\n'); sys.exit(78)")
    passes = iter(range(6))

    code = fleet.run(is_ready=lambda: len(fleet.said) == 1 and next(passes, None) is None)

    assert code == 0
    assert fleet.starts("worker") == 1
    assert fleet.said[0].startswith("worker cannot start: its configuration, weights or device are wrong")


def test_without_the_first_process_there_is_no_service(tmp_path: Path) -> None:
    """An API server with a wrong configuration ends the run, with its code."""
    fleet = Fleet(tmp_path)
    fleet.add("api", "import sys; sys.exit(78)")
    fleet.add("worker", SERVER)

    assert fleet.run(is_ready=lambda: False) == 78


def test_a_process_that_does_not_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    """It is named."""
    fleet = Fleet(tmp_path)
    fleet.add(
        "api",
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'a').write('started');\n"
        "while True: signal.pause()",
    )

    fleet.run(is_ready=lambda: fleet.starts("api") == 1, grace_seconds=0.2)

    assert fleet.said[-1] == "api did not end within 0.2 s and is killed"


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    """Whoever is in a hurry loses the open requests."""
    fleet = Fleet(tmp_path)
    fleet.add(
        "api",
        f"import os, signal, sys; signal.signal(signal.SIGTERM, lambda *_: os.kill({os.getpid()}, signal.SIGINT));\n"
        "open(sys.argv[1], 'a').write('started')\n"
        "while True: signal.pause()",
    )
    began = time.monotonic()

    fleet.run(is_ready=lambda: fleet.starts("api") == 1, grace_seconds=60)

    assert time.monotonic() - began < 30


def test_what_a_process_started_ends_with_it(tmp_path: Path) -> None:
    """A grandchild shares the process group and would hold the ports."""
    fleet = Fleet(tmp_path)
    fleet.add(
        "api",
        """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
        open(sys.argv[1], "a").write(f"started {child.pid}")
        child.wait()
        """,
    )

    fleet.run(is_ready=lambda: fleet.starts("api") == 1)

    grandchild = int((tmp_path / "api").read_text(encoding="utf-8").split()[1])
    assert not is_alive(grandchild)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(found.strip()) and not found.strip().startswith("Z")


def test_handlers_are_put_back(tmp_path: Path) -> None:
    """Ctrl-C afterwards is Python's again."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    fleet = Fleet(tmp_path)
    fleet.add("api", SERVER)

    fleet.run(is_ready=lambda: fleet.starts("api") == 1)

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)] == before


def test_milestones_are_announced_in_the_order_in_which_they_are_reached(tmp_path: Path) -> None:
    """Each of them once; none waits for another one."""
    fleet = Fleet(tmp_path)
    fleet.add("api", SERVER)
    supervisor = Supervisor(fleet.commands, say=fleet.said.append, grace_seconds=20)
    reached = ["second", "first"]

    def milestone(name: str) -> Milestone:
        return Milestone(
            lambda: fleet.starts("api") == 1 and reached[:1] == [name],
            lambda: fleet.said.append(reached.pop(0)),
        )

    supervisor.run([milestone("first"), milestone("second"), Milestone(lambda: not reached, interrupt)])

    assert fleet.said[:2] == ["second", "first"]
