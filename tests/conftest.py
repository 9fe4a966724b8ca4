"""What holds for every test."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _store_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models that workers pull and prepare go into a store that ends with the run, also those of child processes."""
    before = os.environ.get("FLASHGEN_STORE")
    os.environ["FLASHGEN_STORE"] = str(tmp_path_factory.mktemp("store"))
    yield
    if before is None:
        del os.environ["FLASHGEN_STORE"]
    else:
        os.environ["FLASHGEN_STORE"] = before
