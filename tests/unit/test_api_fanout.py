"""Texts of one request cut into messages that travel together."""

from __future__ import annotations

import asyncio

import pytest

from deployments.contracts import StageTiming
from deployments.errors import EngineFailed
from serve_app.api.fanout import all_together, chunks, slowest
from serve_app.api.services import HttpConfig

CONFIG = HttpConfig(chunk_texts=3, chunk_bytes=1024)


def test_messages_hold_all_texts_in_order_within_both_limits() -> None:
    texts = ["a", "b", "c", "d", "é" * 500, "e" * 100, "f" * 5000, "g"]
    cut = list(chunks(texts, CONFIG))
    assert [text for chunk in cut for text in chunk] == texts
    assert [len(chunk) for chunk in cut] == [3, 2, 1, 1, 1]


def test_a_message_is_counted_in_bytes_not_characters() -> None:
    assert [len(chunk) for chunk in chunks(["é" * 300, "é" * 300], CONFIG)] == [1, 1]
    assert [len(chunk) for chunk in chunks(["e" * 300, "e" * 300], CONFIG)] == [2]


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
    await asyncio.wait_for(cancelled.wait(), 5)


def test_calls_made_together_take_as_long_as_the_slowest_and_show_the_largest_batch() -> None:
    timings = [StageTiming(1.0, 2.0, 5), StageTiming(0.5, 4.0, 3), StageTiming(2.0, 1.0, 9)]
    assert slowest(timings) == StageTiming(0.5, 4.0, 9)
