import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml

import flashgen_runtime
from flashgen import cli
from flashgen.errors import UsageError
from flashgen.example_calls import example_call
from flashgen.local_service import LocalService
from flashgen.ports import HOST, Ports
from flashgen.resolved import ResolvedField, ResolvedProject
from flashgen.run_target import ModelTarget, SpecTarget, machine_resources, parse_target
from flashgen.runtime_interpreter import install_command, installed_version, interpreter
from flashgen.starter_spec import model_spec
from flashgen.supervisor import Command
from flashgen.types import Atom
from flashgen.user_text import UserText
from tests.compiler.hostile import HOSTILE
from tests.compiler.projects import CHAT_SPEC, resolved, write_checkpoint


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


@contextmanager
def listening() -> Iterator[int]:
    """A port that is taken."""
    with closing(socket.socket()) as server:
        server.bind((HOST, 0))
        server.listen()
        yield server.getsockname()[1]


def say_nothing(_: str) -> None:
    """Where nobody reads."""


def test_nothing_and_a_file_mean_a_spec(tmp_path: Path) -> None:
    """`flashgen run` takes `flashgen.yaml` here, or in the folder that is named."""
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "flashgen.yaml").write_text(CHAT_SPEC, encoding="utf-8")

    assert parse_target(None) == SpecTarget(Path("flashgen.yaml"))
    assert parse_target("service/flashgen.yaml") == SpecTarget(Path("service/flashgen.yaml"))
    assert parse_target("service") == SpecTarget(Path("service/flashgen.yaml"))


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "text-generation"),
        ("GPT2LMHeadModel", "text-generation"),
        ("BertModel", "feature-extraction"),
        ("BertForMaskedLM", "feature-extraction"),
    ],
)
def test_a_folder_with_a_model_is_served_by_its_kind(tmp_path: Path, architecture: str, task: str) -> None:
    """`architectures` in `config.json` says which."""
    write_checkpoint(tmp_path / "model", architecture=architecture)

    assert parse_target("./model") == ModelTarget(str(tmp_path / "model"), task)


def test_a_name_on_the_hub_is_a_model() -> None:
    """Text generation, until somebody writes a spec."""
    assert parse_target("Qwen/Qwen3-0.6B") == ModelTarget("Qwen/Qwen3-0.6B", "text-generation")


@pytest.mark.parametrize("text", ["missing", "a/b/c", "./missing", "owner/ name", "empty", "vision"])
def test_anything_else_is_bad_usage(tmp_path: Path, text: str) -> None:
    """With the three things that can be named, or what the folder lacks."""
    (tmp_path / "empty").mkdir()
    write_checkpoint(tmp_path / "vision", architecture="ViTForImageClassification")

    with pytest.raises(UsageError) as caught:
        parse_target(text)

    assert caught.value.hint


@pytest.mark.parametrize("task", ["text-generation", "feature-extraction"])
def test_the_spec_of_a_model_builds(tmp_path: Path, task: str) -> None:
    """With what this machine has."""
    folder = write_checkpoint(tmp_path / "my model")
    spec = model_spec("my-model", str(folder), task, machine_resources())
    (tmp_path / "flashgen.yaml").write_text(spec, encoding="utf-8")

    assert cli.main(["validate"]) == 0


@pytest.mark.parametrize("uri", HOSTILE)
def test_any_uri_stays_that_text(uri: str) -> None:
    """A folder may be called anything."""
    spec = yaml.safe_load(model_spec("name", uri, "text-generation", machine_resources()))

    assert spec["servers"][0]["model"]["uri"] == uri


def test_a_port_in_use_is_told() -> None:
    """Before anything starts."""
    with listening() as port, pytest.raises(UsageError, match=f"port {port} is in use"):
        Ports().exactly(port)


def test_a_default_port_in_use_is_avoided() -> None:
    """The next free one, and never one twice."""
    ports = Ports()

    with listening() as port:
        first = ports.near(port)
        second = ports.near(port)

    assert port < first < second


def commands(folder: Path, spec: str = CHAT_SPEC) -> dict[str, Command]:
    project = resolved(folder, spec)
    service = LocalService(
        project, folder, python="python", models_folder=folder / "models", port=None, environ={"PATH": "/bin"}
    )
    return {command.name: command for command in service.commands()}


def test_each_process_gets_its_ports_and_the_others(tmp_path: Path) -> None:
    """The API finds the worker where the worker listens; both only on this machine."""
    found = commands(tmp_path)

    api, worker = found["the API server"], found["the worker some-model"]
    assert list(found) == ["the API server", "the worker some-model"]
    assert api.argv == ["python", "-m", "flashgen_runtime", "serve-api", str(tmp_path)]
    assert worker.argv == ["python", "-m", "flashgen_runtime", "serve-worker", str(tmp_path), "some-model"]
    assert api.environ["FLASHGEN_WORKER_SOME_MODEL"] == f"{HOST}:{worker.environ['FLASHGEN_RPC_PORT']}"
    assert {api.environ["FLASHGEN_API_HOST"], worker.environ["FLASHGEN_BIND_HOST"]} == {HOST}
    assert worker.environ["FLASHGEN_MODELS"] == str(tmp_path / "models")
    numbers = [value for name, value in {**api.environ, **worker.environ}.items() if name.endswith("_PORT")]
    assert len(set(numbers)) == len(numbers) == 4


def test_a_worker_gets_the_variables_of_its_server(tmp_path: Path) -> None:
    """`container.env` holds for `run` as for compose; texts are passed as they are."""
    found = commands(tmp_path, CHAT_SPEC + "    container: {env: {MODE: '$(id) ${HOME}'}}\n")

    assert found["the worker some-model"].environ["MODE"] == "$(id) ${HOME}"
    assert "MODE" not in found["the API server"].environ


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\0" not in text])
def test_the_curl_line_is_a_shell_command_whatever_the_model_is_called(tmp_path: Path, text: str) -> None:
    """It can be copied and pasted."""
    project = with_model_id(resolved(tmp_path), text)

    words = shlex.split(example_call(project, "http://127.0.0.1:8000"))

    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == text


def test_the_curl_line_keeps_to_the_declared_bounds(tmp_path: Path) -> None:
    """What `run` tells people to type is not refused."""
    project = resolved(tmp_path)
    (api,) = project.apis
    bounded = ResolvedField(
        **{**dict.fromkeys(ResolvedField._fields), "name": "max_tokens", "type": Atom("int"), "min": 1, "max": 5}
    )

    words = shlex.split(example_call(project._replace(apis=(api._replace(inputs=(bounded,)),)), "http://x"))

    assert json.loads(words[-1])["max_tokens"] <= 5


def with_model_id(project: ResolvedProject, text: str) -> ResolvedProject:
    (api,) = project.apis
    (server,) = api.servers
    (model,) = server.models
    renamed = server._replace(models=(model._replace(id=UserText(text)),))
    return project._replace(servers=(renamed,), apis=(api._replace(servers=(renamed,)),))


def test_the_interpreter_that_has_the_runtime_serves(tmp_path: Path) -> None:
    """Same version, all extras: nothing is installed."""
    project = resolved(tmp_path)._replace(runtime_version=flashgen_runtime.__version__)

    assert installed_version() == flashgen_runtime.__version__
    assert interpreter(project, tmp_path, say_nothing) == sys.executable


def test_another_version_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the project's own environment, from its own wheel; a broken installation is made again."""
    project = resolved(tmp_path)
    executed: list[list[str]] = []
    codes = iter([0, 1, 0, 0])

    def execute(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        executed.append(command)
        python = tmp_path / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr("flashgen.runtime_interpreter.subprocess.run", execute)

    with pytest.raises(UsageError, match="ended with 1"):
        interpreter(project, tmp_path, say_nothing)
    first = interpreter(project, tmp_path, say_nothing)
    second = interpreter(project, tmp_path, say_nothing)

    assert first == second == str(tmp_path / ".venv" / "bin" / "python")
    assert len(executed) == 4
    assert executed[-1] == install_command(Path(first), project.runtime_wheel)
    assert executed[-1][-1] == "./vendor/flashgen_runtime-1.2.3-py3-none-any.whl[server,worker]"


@pytest.mark.parametrize("port", ["0", "65536", "-1", "eighty"])
def test_a_port_is_a_port(port: str) -> None:
    """Exit code 2."""
    assert cli.main(["run", f"--port={port}"]) == 2
