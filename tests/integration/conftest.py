"""A Ray Serve for the tests of one module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving import StartApp, serving


@pytest.fixture(scope="module")
def start_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartApp]:
    with serving(tmp_path_factory.mktemp("store")) as start:
        yield start
