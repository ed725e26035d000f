"""The HTTP API over fakes that hold a few documents; a test file with other needs has fixtures of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.api import FakeServices


@pytest.fixture
async def fakes() -> FakeServices:
    fakes = FakeServices()
    await fakes.fill()
    return fakes


@pytest.fixture
async def client(fakes: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    async with fakes.client() as client:
        yield client
