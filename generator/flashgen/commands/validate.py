"""Check a spec and say everything that is wrong with it. Nothing is written."""

import argparse
from pathlib import Path

from flashgen.report import Report
from flashgen.spec import ProjectSpec
from flashgen.stages.load import load
from flashgen.stages.validate import validate

DEFAULT_SPEC = Path("flashgen.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`[SPEC]`."""
    parser.add_argument("spec", metavar="SPEC", nargs="?", type=Path, default=DEFAULT_SPEC, help="default: %(default)s")


def run(arguments: argparse.Namespace) -> Report:
    """Says what a right spec holds; raises `SpecError` for a wrong one."""
    spec = validate(load(arguments.spec))
    return Report((f"{arguments.spec} is valid: {_contents(spec)}",))


def _contents(spec: ProjectSpec) -> str:
    return f"{_counted(len(spec.apis), 'api')}, {_counted(len(spec.servers), 'server')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
