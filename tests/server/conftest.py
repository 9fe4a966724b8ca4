"""A running application with fake workers, shared by the tests of one module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from service_under_test import RecordingHooks, fake_application


@pytest.fixture(scope="module")
def hooks() -> RecordingHooks:
    return RecordingHooks()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, hooks: RecordingHooks) -> Iterator[TestClient]:
    folder: Path = tmp_path_factory.mktemp("service")
    with TestClient(fake_application(folder, hooks), raise_server_exceptions=False) as running:
        yield running
