"""The README says what is so."""

import re
from pathlib import Path

from flashgen.pipeline import build

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SPEC = README.partition("```yaml\n")[2].partition("```")[0]
TREE = README.partition("```\nassistant/\n")[2].partition("```")[0]


def test_the_spec_builds_what_the_readme_shows(tmp_path: Path) -> None:
    """Every file and folder of the tree is there, and there are as many files as the README says."""
    spec = tmp_path / "flashgen.yaml"
    spec.write_text(SPEC, encoding="utf-8")

    built = build(spec)

    assert built.folder == tmp_path / "assistant"
    assert {path for path in _shown_paths() if not (built.folder / path).exists()} == set()
    assert f"That is {len(built.paths)} files" in README


def test_the_make_targets_exist() -> None:
    """What the README and CONTRIBUTING tell people to type is in the Makefile."""
    root = Path(__file__).parent.parent
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    contributing = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")

    assert set(re.findall(r"\bmake ([a-z-]+)", README + contributing)) <= targets


def _shown_paths() -> set[str]:
    """The paths of the tree: two blanks per level, several names may share a line, remarks stand behind `#`."""
    folders: list[str] = []
    paths = set()
    for line in TREE.splitlines():
        names = line.partition("#")[0].split()
        del folders[(len(line) - len(line.lstrip())) // 2 - 1 :]
        paths |= {"".join(folders) + name for name in names}
        folders.append(names[0])
    return paths
