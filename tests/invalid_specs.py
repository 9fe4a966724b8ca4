"""The wrong specs in `tests/invalid/`: `spec.yaml`, and in `stderr.txt` what flashgen says about it."""

from pathlib import Path

from flashgen.diagnostics import render_text
from flashgen.errors import SpecError
from flashgen.stages.load import load
from flashgen.stages.validate import validate

FOLDER = Path(__file__).parent / "invalid"


def cases() -> list[Path]:
    """The folders of all cases."""
    return sorted(path.parent for path in FOLDER.glob("*/spec.yaml"))


def diagnosis(spec: Path) -> str:
    """What flashgen prints about a spec, which is called `spec.yaml` there; "" when nothing is wrong."""
    try:
        validate(load(spec))
    except SpecError as error:
        return render_text(error.diagnostics, path=Path("spec.yaml"), text=error.text)
    return ""
