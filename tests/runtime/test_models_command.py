"""`python -m flashgen_runtime models`: what people type, see and get as an exit code."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import torch

from flashgen_runtime.loader import save_dict
from flashgen_runtime.loader.store import Store
from flashgen_runtime.models_command.main import main
from flashgen_runtime.models_command.terminal import ProgressBar, readable_bytes
from flashgen_runtime.operations import ModelAnswer, OperationsServer, Probe
from tests.fake_hub import FakeHub, fake_hub, hub_environment

SAMPLE = Path(__file__).parents[2] / "samples" / "models" / "stdlib-coder"
NAME = "owner/model"
WEIGHTS = "model.safetensors"

# Many more than a process takes.
DEADLINE_SECONDS = 60


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of this test's own."""
    monkeypatch.setenv("FLASHGEN_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("flashgen_runtime.loader.fetch.PAUSE_SECONDS", 0.0)
    return Store(tmp_path / "store")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_dict({"weight": torch.arange(1000.0)}, folder / WEIGHTS)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_model_is_pulled_listed_and_removed(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables for people, JSON for programs, and nothing left in the end."""
    assert main(["pull", str(checkpoint), "--no-prepare"]) == 0
    assert main(["list"]) == 0
    head, line = capsys.readouterr().out.splitlines()[-2:]
    assert head.split() == ["MODEL", "REVISION", "CHECKPOINT", "PREPARED", "PULLED", "NAME"]
    assert line.startswith(str(checkpoint))

    assert main(["info", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [file["name"] for file in found["files"]] == ["config.json", WEIGHTS]
    assert found["checkpoint_bytes"] == sum(file["bytes"] for file in found["files"])
    assert found["prepared_bytes"] == 0

    assert main(["rm", found["name"]]) == 0
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2]) == []


def test_info_shows_files_and_digests(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was fetched, how large, and its SHA-256."""
    main(["pull", str(checkpoint), "--no-prepare"])
    assert main(["info", str(checkpoint)]) == 0

    out = capsys.readouterr().out
    assert f"model       {checkpoint}" in out
    assert any(len(line.split()[-1]) == 64 for line in out.splitlines() if line.startswith(WEIGHTS))


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["info", "owner/none"], 2, "the store has no model `owner/none`; it has: none"),
        (["rm"], 2, "name a model"),
        (["rm", "--leftovers", "x"], 2, "takes no model"),
        (["pull", "ftp://host/x"], 1, "is not among hub ids"),
        (["pull", "/nowhere/at/all"], 1, "no such folder"),
        (["load", "x", "--url", "ftp://host"], 2, "no address"),
        (["load", "x", "--url", "http://127.0.0.1:9"], 3, "no worker answers at http://127.0.0.1:9"),
    ],
)
def test_mistakes_have_a_line_and_a_code(
    arguments: list[str], code: int, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """2: what was typed; 1: what it names; 3: something here."""
    assert main(arguments) == code

    captured = capsys.readouterr()
    assert problem in captured.err
    assert captured.err.startswith("error: ")
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [[], ["fly"], ["pull"], ["run", "x", "y", "--max-tokens", "0"], ["load", "x"]])
def test_bad_arguments_are_bad_usage(arguments: list[str]) -> None:
    """Exit code 2, as argparse has it."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2


def test_what_nobody_expected_is_our_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 4, one line, and the way to the traceback."""
    monkeypatch.setattr(Store, "models", lambda _: 1 / 0)

    assert main(["list"]) == 4

    assert "error: flashgen failed: ZeroDivisionError" in capsys.readouterr().err


def test_verify_names_every_damaged_file(checkpoint: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Sound models are said to be; of a damaged one each file is named, and the code is 3."""
    main(["pull", str(checkpoint), "--no-prepare"])
    assert main(["verify"]) == 0
    assert "is sound" in capsys.readouterr().out

    (model,) = store.models()
    for name in ("config.json", WEIGHTS):
        (model.path / name).chmod(0o644)
        (model.path / name).write_bytes(b"other")
    assert main(["verify", str(checkpoint)]) == 3

    err = capsys.readouterr().err
    assert err.count("is not what was pulled") == 2
    assert "error: 2 files are damaged" in err


def test_a_pull_prepares_for_this_processor_and_prepared_files_can_go(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the checkpoint lie panels; removing them alone leaves the checkpoint; a damaged one is found."""
    assert main(["pull", str(SAMPLE), "--quantization", "int8"]) == 0
    (model,) = store.models()
    (prepared,) = store.prepared_files(model)
    assert prepared.name == "bfloat16-int8-panels.safetensors"
    assert main(["prepare", str(SAMPLE), "--for", "generic", "--dtype", "float32"]) == 0
    assert main(["verify", str(SAMPLE)]) == 0

    prepared.chmod(0o644)
    with prepared.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    capsys.readouterr()
    assert main(["verify", str(SAMPLE)]) == 3
    assert "is not what was prepared" in capsys.readouterr().err

    assert main(["rm", "--prepared", str(SAMPLE)]) == 0
    assert store.prepared_files(model) == []
    assert store.models() == [model]


def test_what_was_prepared_from_a_folder_is_shown_and_can_go(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is served as it lies has prepared files too, which take room like any other."""
    assert main(["prepare", str(SAMPLE)]) == 0
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["uri"], found["pulled"]) == (str(SAMPLE), None)
    assert found["prepared_bytes"] > 0
    assert main(["list"]) == 0

    assert main(["rm", "--prepared", str(SAMPLE)]) == 0
    assert store.prepared_elsewhere() == []


def test_a_model_answers_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The text goes to stdout; how fast it came, to stderr."""
    assert main(["run", str(SAMPLE), "def read(", "--raw", "--max-tokens", "8", "--temperature", "0"]) == 0

    captured = capsys.readouterr()
    assert captured.out.endswith("\n")
    assert len(captured.out) > 4
    for part in ("loaded in ", "first token after ", "8 tokens at ", "tokens/s"):
        assert part in captured.err


# With a hub, in processes of their own.


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A hub with one model of 4 MiB, which takes a few chunks."""
    save_dict({"weight": torch.arange(float(1 << 20))}, tmp_path / "weights")
    with fake_hub() as hub:
        hub.repository(NAME).commit({"config.json": b"{}", WEIGHTS: (tmp_path / "weights").read_bytes()})
        yield hub


Pull = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def pull(hub: FakeHub, tmp_path: Path) -> Iterator[Pull]:
    """Starts pulls, each in a process of its own that does not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "flashgen_runtime", "models", "pull", NAME, "--no-prepare"]
        environment = hub_environment(hub, tmp_path)
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment))
        return processes[-1]

    yield start
    if hub.gate is not None:
        hub.gate.set()
    for process in processes:
        process.kill()
        process.communicate()


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, out, err


def test_pulls_of_two_processes_share_one_download(hub: FakeHub, pull: Pull) -> None:
    """The second says that it waits, gets the model, and no byte comes twice."""
    hub.gate = threading.Event()
    processes = [pull() for _ in range(2)]
    waiting = first_to_wait(processes)
    hub.gate.set()

    ended = [finish(process) for process in processes]

    assert waiting in processes
    assert [code for code, _, _ in ended] == [0, 0]
    assert all(NAME in out for _, out, _ in ended)
    assert len(hub.downloads(WEIGHTS)) == 1


def first_to_wait(processes: "list[subprocess.Popen[str]]") -> "subprocess.Popen[str] | None":
    """The process that says that it waits for the other one."""
    found: list[subprocess.Popen[str]] = []

    def read(process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        if "waiting for it" in process.stderr.readline():
            found.append(process)

    for process in processes:
        threading.Thread(target=read, args=(process,), daemon=True).start()
    end = time.monotonic() + DEADLINE_SECONDS
    while not found and time.monotonic() < end:
        time.sleep(0.01)
    return found[0] if found else None


def test_a_killed_pull_goes_on_where_it_was(hub: FakeHub, pull: Pull, store: Store) -> None:
    """After SIGKILL in the middle there is no model; the next pull fetches only the rest."""
    hub.gate = threading.Event()
    hub.gate_bytes = 2 << 20
    process = pull()
    wait_until(lambda: any(path.stat().st_size for path in partial_weights(store)))
    process.send_signal(signal.SIGKILL)
    hub.gate.set()
    assert finish(process)[0] == -signal.SIGKILL
    assert store.models() == []

    code, out, err = finish(pull())

    assert (code, NAME in out) == (0, True), err
    first, second = hub.downloads(WEIGHTS)
    assert first is None
    assert second in ("bytes=1048576-", "bytes=2097152-")
    (model,) = store.models()
    store.verify(model)


def test_ctrl_c_ends_a_pull_at_once(hub: FakeHub, pull: Pull, store: Store) -> None:
    """Also while the source is silent; the code is the shell's, and the user learns that nothing is lost."""
    hub.gate = threading.Event()
    process = pull()
    wait_until(lambda: partial_weights(store))
    process.send_signal(signal.SIGINT)

    code, _, err = finish(process)

    assert code == 130
    assert "goes on from here" in err
    assert store.models() == []


def partial_weights(store: Store) -> list[Path]:
    return list((store.root / "partial").glob(f"*/{WEIGHTS}"))


def wait_until(is_so: Any) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


# With a worker's operations port.


class OneModel:
    """A worker with one model called `a/b`, which is in use: it can be loaded and not unloaded."""

    def list_models(self) -> list[dict[str, object]]:
        return [{"id": "a/b", "residency": "unloaded", "memory_bytes": 0, "dtype": "", "problem": "no room"}]

    async def load_model(self, name: str) -> ModelAnswer:
        if name != "a/b":
            return ModelAnswer(HTTPStatus.NOT_FOUND, {"error": "unknown"})
        body: dict[str, object] = {"id": name, "residency": "loaded", "memory_bytes": 1500000000, "seconds": 0.412}
        return ModelAnswer(HTTPStatus.OK, body)

    async def unload_model(self, name: str) -> ModelAnswer:
        del name
        return ModelAnswer(HTTPStatus.CONFLICT, {"error": "2 requests use it"})


class Healthy:
    """Probes that nobody asks."""

    def livez(self) -> Probe:
        return Probe(ok=True, body={})

    startupz = readyz = livez


@contextmanager
def operations_port(models: OneModel | None) -> Iterator[str]:
    """A process's operations port; an API server's has no models."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = OperationsServer(Healthy(), host="127.0.0.1", port=0, models=models)
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        # Else a test that fails would keep the whole run from ending.
        asyncio.run_coroutine_threadsafe(server.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize(
    ("verb", "model", "code", "line"),
    [
        ("load", "a/b", 0, "a/b is loaded: 1.5 GB in 0.41 s"),
        ("unload", "a/b", 3, "error: `a/b`: 2 requests use it"),
        ("load", "c", 2, "has no model `c`; it has: a/b"),
    ],
)
def test_a_worker_is_asked_to_load_and_unload(
    verb: str, model: str, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its answer is told: done, in use, or unknown with the known ones."""
    with operations_port(OneModel()) as url:
        assert main([verb, model, "--url", url]) == code

    captured = capsys.readouterr()
    assert line in captured.out + captured.err


def test_a_workers_models_are_listed_with_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Which are in its memory, how large, and why one is not."""
    with operations_port(OneModel()) as url:
        assert main(["list", "--url", url]) == 0

    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["MODEL", "RESIDENCY", "MEMORY", "PRECISION", "PROBLEM"]
    assert line.split(maxsplit=4) == ["a/b", "unloaded", "-", "-", "no room"]


def test_an_api_server_has_no_models_to_load(capsys: pytest.CaptureFixture[str]) -> None:
    """The wrong port is said to be the wrong port."""
    with operations_port(None) as url:
        assert main(["load", "a/b", "--url", url]) == 2
        assert main(["list", "--url", url]) == 2

    assert "name a worker's operations port" in capsys.readouterr().err


class Terminal:
    """A stream that somebody watches."""

    def __init__(self, *, is_watched: bool) -> None:
        self.text = ""
        self._is_watched = is_watched

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        """Nothing is kept back."""

    def isatty(self) -> bool:
        return self._is_watched


@pytest.mark.parametrize("is_watched", [True, False])
def test_progress_is_a_bar_for_people_and_lines_for_files(*, is_watched: bool) -> None:
    """A terminal's line is drawn over and over and disappears; a file gets a line for every tenth at most."""
    stream: Any = Terminal(is_watched=is_watched)
    with ProgressBar("model", stream=stream) as bar:
        bar.start(1000)
        for _ in range(1000):
            bar.add(1)

    if is_watched:
        assert stream.text.startswith("\r\x1b[Kmodel [")
        assert stream.text.endswith("\r\x1b[K")
    else:
        assert stream.text.splitlines()[-1] == "model: 1 kB of 1 kB (100 %)"
        assert len(stream.text.splitlines()) == 10


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (1.5e9, "1.5 GB"), (2e15, "2e+03 TB")]
)
def test_amounts_are_readable(num_bytes: float, text: str) -> None:
    """Three digits and a unit."""
    assert readable_bytes(num_bytes) == text
