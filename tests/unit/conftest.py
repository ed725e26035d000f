"""The HTTP API over fakes that hold a few documents; a test file with other needs has fixtures of its own.

Tests with the mark `virtual_time` run on a loop whose clock jumps to the next timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import httpx
import pytest

from tests.api import FakeServices
from tests.virtual_time import VirtualTimeLoop


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual": VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}


@pytest.fixture
async def fakes() -> FakeServices:
    fakes = FakeServices()
    await fakes.fill()
    return fakes


@pytest.fixture
async def client(fakes: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    async with fakes.client() as client:
        yield client
