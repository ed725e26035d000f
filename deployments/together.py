"""Calls that are made at the same time and stand or fall together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

Result = TypeVar("Result")


async def all_together(calls: Sequence[Awaitable[Result]]) -> list[Result]:
    """Await all calls at the same time; the first error cancels the others and is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        # After an error the others would only be load that nobody waits for.
        for task in tasks:
            task.cancel()
