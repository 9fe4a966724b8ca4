"""The guides say what is so: their Python is run, their commands exist."""

import re
from pathlib import Path

import pytest

from flashgen_runtime.models_command.arguments import parse

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_python_of_a_guide_runs(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the checkout's folder, with a store of its own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FLASHGEN_STORE", str(tmp_path))

    for block in re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(guide), "exec"), {})

    capsys.readouterr()


def test_the_guide_of_models_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """A new verb has a line in the table, and a line has a verb."""
    with pytest.raises(SystemExit):
        parse(["--help"])
    helped = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    text = (ROOT / "docs" / "guides" / "models.md").read_text(encoding="utf-8")
    described = re.findall(r"^\| `flashgen models ([a-z]+).*?(?:`, `([a-z]+)`)? \|", text, re.MULTILINE)

    assert {verb for verbs in described for verb in verbs if verb} == set(helped)
