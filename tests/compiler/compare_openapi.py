"""Says of which projects openapi.json differs from what the application serves: `compare_openapi.py FOLDER…`.

A program of its own, because generated projects all have a package called `api`.
"""

import importlib
import json
import sys
from pathlib import Path

from flashgen_runtime.testing import fake_service


def main() -> None:
    """Prints one folder per line; nothing when all are equal."""
    differing = [folder for folder in sys.argv[1:] if not _is_equal(Path(folder))]
    sys.stdout.write("".join(f"{folder}\n" for folder in differing))


def _is_equal(folder: Path) -> bool:
    for name in [name for name in sys.modules if name.partition(".")[0] == "api"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        settings = importlib.import_module("api.settings").Settings.from_environment(
            {"FLASHGEN_CONFIG": str(folder / "config" / "service.yaml")}
        )
        app = importlib.import_module("api.main").create_app(settings, fake_service(settings.config_path))
    finally:
        del sys.path[0]
    return bool(app.openapi() == json.loads((folder / "openapi.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
