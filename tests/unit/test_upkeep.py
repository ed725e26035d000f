"""When a collection is maintained, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from deployments.indexes import IndexesConfig, Upkeep
from tests.virtual_time import timed

CONFIG = IndexesConfig(commits_per_optimize=3, maintain_after_s=2.0, keep_versions_s=600.0)

Scenario = Callable[[Upkeep], Awaitable[None]]


def maintained_at(scenario: Scenario, *, failing: int = 0) -> list[float]:
    """The moments, in seconds, at which collection `docs` was maintained while the scenario ran; the first few fail."""
    moments: list[float] = []

    async def run() -> None:
        async def maintain(collection: str) -> None:
            moments.append(asyncio.get_running_loop().time())
            if len(moments) <= failing:
                raise OSError("the disk is full")

        upkeep = Upkeep(CONFIG, maintain)
        await scenario(upkeep)
        await upkeep.close()

    timed(run)
    return [round(moment, 3) for moment in moments]


def test_a_quiet_collection_is_maintained_and_later_its_old_versions_are_removed() -> None:
    async def scenario(upkeep: Upkeep) -> None:
        upkeep.committed("docs", behind=False)
        await asyncio.sleep(5000)

    assert maintained_at(scenario) == [2.0, 604.0]


def test_documents_on_their_way_put_maintenance_off() -> None:
    async def scenario(upkeep: Upkeep) -> None:
        for _ in range(2):
            with upkeep.on_their_way("docs"):
                await asyncio.sleep(10)
                upkeep.committed("docs", behind=False)
        await asyncio.sleep(100)

    assert maintained_at(scenario) == [22.0]


def test_what_is_due_does_not_wait_for_a_quiet_moment() -> None:
    async def scenario(upkeep: Upkeep) -> None:
        with upkeep.on_their_way("docs"):
            for _ in range(CONFIG.commits_per_optimize):
                await asyncio.sleep(1)
                upkeep.committed("docs", behind=False)
            await asyncio.sleep(50)
            upkeep.committed("docs", behind=True)
            await asyncio.sleep(50)

    assert maintained_at(scenario) == [3.0, 53.0]


def test_a_failure_is_tried_again_later_and_later() -> None:
    async def scenario(upkeep: Upkeep) -> None:
        upkeep.committed("docs", behind=False)
        await asyncio.sleep(100)

    assert maintained_at(scenario, failing=2) == [2.0, 6.0, 14.0]


def test_what_a_retry_replaced_is_removed_later_as_well() -> None:
    async def scenario(upkeep: Upkeep) -> None:
        upkeep.committed("docs", behind=False)
        await asyncio.sleep(5000)

    assert maintained_at(scenario, failing=2) == [2.0, 6.0, 14.0, 616.0]


def test_what_an_earlier_writer_left_undone_is_done_at_once_and_later_what_that_replaced_is_removed() -> None:
    async def scenario(upkeep: Upkeep) -> None:
        upkeep.catch_up("docs")
        await asyncio.sleep(5000)

    assert maintained_at(scenario) == [0.0, 602.0]


def test_what_an_earlier_writer_left_undone_waits_for_documents_on_their_way() -> None:
    async def scenario(upkeep: Upkeep) -> None:
        with upkeep.on_their_way("docs"):
            upkeep.catch_up("docs")
            await asyncio.sleep(9)
        await asyncio.sleep(100)

    assert maintained_at(scenario) == [10.0]


def test_nothing_is_planned_after_closing() -> None:
    async def scenario(upkeep: Upkeep) -> None:
        upkeep.committed("docs", behind=False)
        await upkeep.close()
        upkeep.committed("docs", behind=True)
        await asyncio.sleep(100)

    assert maintained_at(scenario) == []


def test_commits_do_not_hurry_what_has_just_failed() -> None:
    async def scenario(upkeep: Upkeep) -> None:
        upkeep.committed("docs", behind=True)
        for _ in range(10):
            await asyncio.sleep(0.5)
            upkeep.committed("docs", behind=True)
        await asyncio.sleep(100)

    assert maintained_at(scenario, failing=1)[:2] == [0.0, 4.0]
