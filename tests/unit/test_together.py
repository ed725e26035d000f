"""Calls made at the same time: their order, and what becomes of the others after an error."""

from __future__ import annotations

import asyncio

import pytest

from deployments.errors import EngineFailed
from deployments.together import all_together


async def test_results_come_in_the_order_of_the_calls() -> None:
    async def after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert await all_together([after(3), after(1), after(2)]) == [3, 1, 2]


async def test_the_first_error_cancels_the_other_calls() -> None:
    cancelled = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def fail() -> None:
        await asyncio.sleep(0)
        raise EngineFailed("failed")

    with pytest.raises(EngineFailed):
        await all_together([hang(), fail()])
    await asyncio.wait_for(cancelled.wait(), 60)
