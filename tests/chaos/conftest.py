"""A Ray Serve for the tests of one module, whose test engines note in a file how much they have running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import StartApp, serving


@pytest.fixture(scope="module")
def running_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("running") / "changes"


@pytest.fixture(scope="module")
def start_app(tmp_path_factory: pytest.TempPathFactory, running_file: Path) -> Iterator[StartApp]:
    with serving(tmp_path_factory.mktemp("store"), {"RAGLANE_TEST_RUNNING_FILE": str(running_file)}) as start:
        yield start
