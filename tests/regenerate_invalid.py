"""Rewrites what flashgen says about the wrong specs in `tests/invalid/`, and the page of codes; review it."""

from pathlib import Path

from flashgen.diagnostic_codes import reference_page
from tests.invalid_specs import cases, diagnosis

REFERENCE_PAGE = Path(__file__).parents[1] / "docs/reference/diagnostics.md"


def main() -> None:
    """Writes every `stderr.txt`; fails for a spec that is not wrong."""
    for case in cases():
        text = diagnosis(case / "spec.yaml")
        if not text:
            raise SystemExit(f"{case}/spec.yaml is valid")
        (case / "stderr.txt").write_text(text, encoding="utf-8")
    REFERENCE_PAGE.write_text(reference_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
