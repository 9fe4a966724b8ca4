import json
from pathlib import Path

import pytest
import yaml

from flashgen import cli
from flashgen.resources import data_dir
from tests.compiler.hostile import HOSTILE
from tests.compiler.projects import write_checkpoint


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


def spec_of(folder: Path) -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load((folder / "flashgen.yaml").read_text(encoding="utf-8"))
    return loaded


def test_a_new_folder_is_a_project(tmp_path: Path) -> None:
    """Spec, schema for editors, and an empty record that makes `build` write here."""
    assert cli.main(["init", "My Chat"]) == 0

    folder = tmp_path / "My Chat"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [".flashgen/.gitignore", ".flashgen/files.tsv", ".flashgen/schema/v1.json", "flashgen.yaml"]
    assert spec_of(folder)["name"] == "my-chat"
    schema = (folder / ".flashgen" / "schema" / "v1.json").read_bytes()
    assert schema == (data_dir("schemas") / "v1" / "spec.schema.json").read_bytes()
    first_line = (folder / "flashgen.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first_line == "# yaml-language-server: $schema=.flashgen/schema/v1.json"
    assert json.loads(schema)


def test_the_first_spec_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    """And says what comes next."""
    cli.main(["init"])

    assert cli.main(["validate"]) == 0
    assert "flashgen build" in capsys.readouterr().out


def test_an_existing_spec_is_never_overwritten(tmp_path: Path) -> None:
    """Exit code 3, and nothing else is written either."""
    (tmp_path / "flashgen.yaml").write_text("mine\n", encoding="utf-8")

    assert cli.main(["init"]) == 3

    assert (tmp_path / "flashgen.yaml").read_text(encoding="utf-8") == "mine\n"
    assert not (tmp_path / ".flashgen").exists()


@pytest.mark.parametrize("model", HOSTILE)
def test_any_model_stays_that_text(tmp_path: Path, model: str) -> None:
    """Whatever `--model` says reaches the spec as a text, and the rest of the spec stays what it is."""
    cli.main(["init", "plain"])
    cli.main(["init", "hostile", f"--model={model}"])

    plain, hostile = spec_of(tmp_path / "plain"), spec_of(tmp_path / "hostile")
    assert hostile["servers"][0]["model"].pop("uri") == model  # type: ignore[index]
    del plain["servers"][0]["model"]["uri"], plain["name"], hostile["name"]  # type: ignore[index]
    assert hostile == plain


def test_a_local_model_is_written_as_seen_from_the_spec(tmp_path: Path) -> None:
    """Relative to the new folder, with the apis of its task."""
    write_checkpoint(tmp_path / "weights" / "bert", architecture="BertModel")

    cli.main(["init", "service", "--model", "weights/bert"])

    spec = spec_of(tmp_path / "service")
    assert spec["servers"][0]["model"] == {"type": "embeddings", "uri": "../weights/bert"}  # type: ignore[index]
    assert cli.main(["validate", "service/flashgen.yaml"]) == 0


def test_a_folder_that_cannot_be_made_is_bad_usage(tmp_path: Path) -> None:
    """Such as one below a file."""
    (tmp_path / "file").write_text("", encoding="utf-8")

    assert cli.main(["init", "file/below"]) == 2
