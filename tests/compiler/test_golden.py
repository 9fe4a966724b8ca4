import hashlib
import os
import subprocess
import sys
from difflib import unified_diff

import pytest

from flashgen.pipeline import build
from flashgen.runtime_wheel import runtime_wheel
from tests import golden_trees


@pytest.mark.parametrize("name", golden_trees.NAMES)
def test_a_sample_becomes_its_golden_tree(name: str) -> None:
    """Every path, mode and text; `make golden` rewrites the tree for review."""
    golden = golden_trees.golden_tree(name)

    tree = golden_trees.built_tree(name)

    assert sorted(tree) == sorted(golden)
    differences = [line for path in tree if tree[path] != golden[path] for line in _difference(path, golden, tree)]
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("name", golden_trees.NAMES)
def test_a_second_build_changes_nothing(name: str) -> None:
    """The second report has no changes, and no file has new bytes."""
    with golden_trees.sample_copy(name) as spec:
        folder = build(spec).folder
        before = golden_trees.read_tree(folder)

        second = build(spec)

        assert second.report.changes == ()
        assert golden_trees.read_tree(folder) == before


def test_a_build_is_the_same_in_every_environment() -> None:
    """Neither the folder nor the hash seed, time zone, locale or umask leave a trace in bytes or modes."""
    name = "02-first-spec"
    with golden_trees.sample_copy(name) as spec:
        environment = {**os.environ, "PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati", "LC_ALL": "C"}
        subprocess.run(
            [sys.executable, "-m", "flashgen", "build", str(spec)],
            env=environment,
            umask=0o077,
            check=True,
            capture_output=True,
        )
        folder = spec.parent / "flashgen"

        tree = golden_trees.with_placeholders(golden_trees.read_tree(folder))

        assert tree == golden_trees.golden_tree(name)
        assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}


def test_a_tree_holds_the_real_wheel_and_its_hash() -> None:
    """What golden trees replace: the wheel is the runtime's, and pip is told its SHA-256."""
    wheel = runtime_wheel()
    with golden_trees.sample_copy("02-first-spec") as spec:
        folder = build(spec).folder

        written = (folder / "vendor" / wheel.file_name).read_bytes()
        requirements = (folder / "vendor" / "requirements.txt").read_text(encoding="utf-8")

    assert written == wheel.content
    assert f"./vendor/{wheel.file_name} --hash=sha256:{hashlib.sha256(written).hexdigest()}" in requirements


def test_no_output_names_a_folder_of_this_machine() -> None:
    """Paths are relative to the project or to a container."""
    for name in golden_trees.NAMES:
        with golden_trees.sample_copy(name) as spec:
            for path, file in golden_trees.read_tree(build(spec).folder).items():
                assert str(spec.parent.parent).encode() not in file.content, path
                assert str(golden_trees.ROOT).encode() not in file.content, path


def _difference(path: str, golden: golden_trees.Tree, tree: golden_trees.Tree) -> list[str]:
    if golden[path].is_executable != tree[path].is_executable:
        return [f"{path}: its mode differs"]
    lines = [file.content.decode(errors="replace").splitlines() for file in (golden[path], tree[path])]
    return list(unified_diff(*lines, f"golden/{path}", f"built/{path}", lineterm=""))
