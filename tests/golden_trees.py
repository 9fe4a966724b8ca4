"""Golden trees: what the samples become, file by file, reviewed as differences; `make golden` rewrites them.

The runtime's wheel and its hash change with every line of the runtime: a golden tree has a placeholder for each.
The build record (`.flashgen/`) has tests of its own.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flashgen.pipeline import build
from flashgen.project_folder import RECORD_FOLDER

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
SAMPLES = ROOT / "samples"
NAMES = ("01-complete-python", "02-first-spec", "03-embeddings", "04-many-models", "05-guessing-ahead")

WHEEL_PLACEHOLDER = b"In the place of the runtime's wheel; a test checks the real one.\n"
HASH_PLACEHOLDER = b"0" * 64

# The permission to execute is all that git keeps of a file's mode.
_EXECUTABLE = 0o111


@dataclass(frozen=True, slots=True)
class GoldenFile:
    """One file of a tree."""

    content: bytes
    is_executable: bool


Tree = dict[str, GoldenFile]


@contextmanager
def sample_copy(name: str) -> Iterator[Path]:
    """The spec of a sample in a folder of its own, with the samples' models where the spec looks for them."""
    with TemporaryDirectory() as folder:
        spec = Path(folder) / name / "flashgen.yaml"
        spec.parent.mkdir()
        shutil.copy(SAMPLES / name / "flashgen.yaml", spec)
        (Path(folder) / "models").symlink_to(SAMPLES / "models")
        yield spec


def built_tree(name: str) -> Tree:
    """The tree of a sample, freshly built, with placeholders."""
    with sample_copy(name) as spec:
        return with_placeholders(read_tree(build(spec).folder))


def golden_tree(name: str) -> Tree:
    """The tree of a sample as it was reviewed."""
    return read_tree(GOLDEN / name)


def read_tree(folder: Path) -> Tree:
    """All files below a folder but the build record, by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    relative = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: GoldenFile(path.read_bytes(), bool(path.stat().st_mode & _EXECUTABLE))
        for name, path in relative.items()
        if not name.startswith(f"{RECORD_FOLDER}/")
    }


def with_placeholders(tree: Tree) -> Tree:
    """The tree without the wheel's bytes and hash."""
    (wheel,) = (name for name in tree if name.endswith(".whl"))
    digest = hashlib.sha256(tree[wheel].content).hexdigest().encode()
    replaced = {
        name: GoldenFile(file.content.replace(digest, HASH_PLACEHOLDER), file.is_executable)
        for name, file in tree.items()
    }
    return {**replaced, wheel: GoldenFile(WHEEL_PLACEHOLDER, is_executable=False)}


def rewrite(name: str) -> None:
    """Makes the golden tree of a sample what the sample becomes now."""
    tree = built_tree(name)
    shutil.rmtree(GOLDEN / name, ignore_errors=True)
    for relative, file in tree.items():
        path = GOLDEN / name / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(0o755 if file.is_executable else 0o644)
