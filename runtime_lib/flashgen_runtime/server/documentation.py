"""The documentation page: one file without anything from elsewhere, so that it works where there is no internet."""

import html
from pathlib import Path

_TEMPLATE = Path(__file__).with_name("documentation.html")
_TITLE = "@@TITLE@@"


def documentation_page(title: str) -> str:
    """The page's HTML; in the browser it reads `openapi.json` from beside itself."""
    return _TEMPLATE.read_text(encoding="utf-8").replace(_TITLE, html.escape(title))
