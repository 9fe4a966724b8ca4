"""Finds the data that ships with flashgen: schemas, blueprints and the runtime's sources."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

# In a checkout the data lies beside `generator/`, the runtime under the name of its distribution.
_CHECKOUT_NAMES = {"runtime": "runtime_lib"}


def data_dir(name: str) -> Path:
    """The folder `name` ("schemas", "blueprints", "runtime"): in an installed wheel, else in the checkout.

    NOTE: not `importlib.resources`, which costs as much as the rest of the start-up.
    """
    installed = _PACKAGE / "_data" / name
    if installed.is_dir():
        return installed
    return _PACKAGE.parent.parent / _CHECKOUT_NAMES.get(name, name)
