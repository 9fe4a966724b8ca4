"""The wrong specs in `tests/invalid/`: `spec.yaml`, and in `stderr.txt` what flashgen says about it."""

from pathlib import Path

from flashgen.diagnostics import render_text
from flashgen.errors import SpecError
from flashgen.runtime_wheel import RuntimeWheel
from flashgen.stages.load import load
from flashgen.stages.resolve import resolve
from flashgen.stages.validate import validate

FOLDER = Path(__file__).parent / "invalid"

_WHEEL = RuntimeWheel("1.2.3", "flashgen_runtime-1.2.3-py3-none-any.whl", b"wheel")


def cases() -> list[Path]:
    """The folders of all cases."""
    return sorted(path.parent for path in FOLDER.glob("*/spec.yaml"))


def diagnosis(spec: Path) -> str:
    """What flashgen prints about a spec, which is called `spec.yaml` there; "" when nothing is wrong."""
    try:
        resolve(validate(load(spec)), project_folder=spec.parent / "project", spec_sha256="0" * 64, wheel=_WHEEL)
    except SpecError as error:
        return render_text(error.diagnostics, path=Path("spec.yaml"), text=error.text)
    return ""
