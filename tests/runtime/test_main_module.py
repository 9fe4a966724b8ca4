"""`python -m flashgen_runtime`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime_workers import service_yaml

SHOW = """\
import sys
from pathlib import Path
import beside
print(__name__, Path.cwd().name, Path(sys.path[0]).name, sys.argv[0], beside.WHO)
"""


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flashgen_runtime", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A generated project, as far as its programs are concerned."""
    folder = tmp_path / "project"
    for script in ("api/main.py", "workers/my_model/main.py"):
        path = folder / script
        path.parent.mkdir(parents=True)
        path.write_text(SHOW)
    (folder / "beside.py").write_text("WHO = 'the project'\n")
    return folder


def test_serve_api_runs_the_projects_own_program(project):
    """Its folder is the working directory and the first place of imports; the module is `__main__`."""
    done = run("serve-api", project)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "__main__ project project api/main.py the project\n"


def test_serve_worker_finds_the_package_of_a_server(project):
    """A dash in a server's name is an underscore in its package's; a relative folder is fine."""
    done = run("serve-worker", "project", "my-model", cwd=project.parent)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "__main__ project project workers/my_model/main.py the project\n"


def test_the_exit_code_is_the_programs(project):
    """78 reaches the supervisor as 78."""
    (project / "api/main.py").write_text("raise SystemExit(78)\n")

    assert run("serve-api", project).returncode == 78


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve-api", "nowhere"), "error: nowhere is not a folder\n"),
        (("serve-api", "."), "error: . has no api/main.py\n"),
        (
            ("serve-worker", "project", "other"),
            "error: project has no workers/other/main.py; its workers are my_model\n",
        ),
    ],
)
def test_a_missing_program_is_bad_usage(project, arguments, message):
    """The message names what is missing, and what is there."""
    done = run(*arguments, cwd=project.parent)

    assert (done.returncode, done.stderr, done.stdout) == (2, message, "")


@pytest.mark.parametrize("arguments", [(), ("serve",), ("serve-api",), ("serve-worker", "x")])
def test_wrong_arguments_are_bad_usage(arguments):
    """Exit 2 and a usage line."""
    done = run(*arguments)

    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m flashgen_runtime")


def test_check_config_accepts_what_the_runtime_can_use(tmp_path):
    """Silence and exit 0."""
    path = tmp_path / "service.yaml"
    path.write_text(service_yaml())

    done = run("check-config", path)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("rpc_port: 6500", "rpc_port: many"), "Expected `int`, got `str`"),
        (("rpc_port: 6500", "rpc_prot: 6500"), "rpc_prot"),
        (("version: 1", "version: [1"), "cannot be read"),
    ],
)
def test_check_config_says_what_is_wrong(tmp_path, change, problem):
    """Exit 78 and one message with the file and the place."""
    path = tmp_path / "service.yaml"
    path.write_text(service_yaml().replace(*change))

    done = run("check-config", path)

    assert done.returncode == 78
    assert done.stderr.startswith(f"error: {path}: ")
    assert problem in done.stderr
