"""The running Python's standard library as a corpus: what to train on, and what is kept apart to measure with."""

import random
import sysconfig
from pathlib import Path
from typing import NamedTuple

# Of every choice by chance: files, weights, batches.
SEED = 20311

# Tables of character codes, topic texts and machine settings are no code to learn from.
LEFT_OUT_FOLDERS = {"site-packages", "__pycache__", "encodings", "pydoc_data", "lib-dynload"}
LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-")
TEST_FOLDERS = {"test", "tests", "idle_test"}
# Folders with a style of their own: trained on, never chosen to be held out.
UNUSUAL_FOLDERS = {"idlelib", "lib2to3", "turtledemo", "distutils"}
ORDINARY_BYTES = range(3_000, 80_000)
HELD_OUT_FILES, VALIDATION_FILES = 40, 12
# A file is a near copy of another one when it shares this part of the other's telling lines.
NEAR_COPY_SHARE = 0.25
TELLING_LINE_CHARS = 24


class Corpus(NamedTuple):
    """The standard library's files, and the names for each use."""

    texts: dict[str, str]
    library: list[str]
    tests: list[str]
    validation: list[str]
    held_out: list[str]


def is_test(name: str) -> bool:
    """Tell a test file from one of the library itself."""
    return not TEST_FOLDERS.isdisjoint(Path(name).parts[:-1])


def read_sources() -> dict[str, str]:
    """Read each source file worth training on, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        settings = any(part.startswith(LEFT_OUT_PREFIXES) for part in name.parts)
        if settings or not LEFT_OUT_FOLDERS.isdisjoint(name.parts):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            texts[name.as_posix()] = text
    return texts


def telling_lines(text: str) -> set[str]:
    """Return the distinct lines which are long enough to tell where they come from."""
    lines = (line.strip() for line in text.splitlines())
    return {line for line in lines if len(line) >= TELLING_LINE_CHARS}


def may_be_held_out(name: str, text: str) -> bool:
    """Tell whether a file is an ordinary module."""
    usual = not is_test(name) and UNUSUAL_FOLDERS.isdisjoint(Path(name).parts)
    return usual and len(text.encode()) in ORDINARY_BYTES


def read_corpus() -> Corpus:
    """Choose the held-out and validation files by the seed; the rest, less near copies, trains."""
    texts = read_sources()
    ordinary = [name for name, text in texts.items() if may_be_held_out(name, text)]
    chosen = random.Random(SEED).sample(ordinary, HELD_OUT_FILES + VALIDATION_FILES)
    kept_apart = [telling_lines(texts[name]) for name in chosen]

    def is_near_copy(name: str) -> bool:
        lines = telling_lines(texts[name])
        return any(len(lines & other) > NEAR_COPY_SHARE * len(other) for other in kept_apart)

    trained = [name for name in texts if name not in chosen and not is_near_copy(name)]
    return Corpus(
        texts=texts,
        library=[name for name in trained if not is_test(name)],
        tests=[name for name in trained if is_test(name)],
        validation=sorted(chosen[HELD_OUT_FILES:]),
        held_out=sorted(chosen[:HELD_OUT_FILES]),
    )
