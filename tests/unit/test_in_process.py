"""Stages inside their caller's process, called without a handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import numpy as np
import pytest

from deployments.contracts import (
    Call,
    Candidate,
    Delta,
    Generated,
    GenerateRequest,
    GenerationEvent,
    GenerationOptions,
    Outcome,
    RerankRequest,
    StageTiming,
    Timed,
    Usage,
    Vector,
)
from deployments.errors import DeadlineExceeded, EngineFailed
from deployments.hop import serve_each
from deployments.in_process import InProcessAnswerer, InProcessReranker
from deployments.telemetry import DROPPED

ASKED = RerankRequest("tides", (Candidate("The moon pulls.", "1"), Candidate("Bees hum.", "2")), "docs", None)
QUESTION = GenerateRequest("tides", (), (), GenerationOptions(), budget_s=60)
END = Generated("stop", Usage(1, 1), StageTiming(), "quick")


class Stage:
    """Scores candidates and answers questions as the deployments do, unless it fails or takes too long."""

    def __init__(self, failure: Exception | None = None, takes_s: float = 0.0) -> None:
        self._failure = failure
        self._takes_s = takes_s
        self.cancelled = False

    async def rerank(self, calls: Sequence[Call[RerankRequest]]) -> list[Outcome[Vector]]:
        return await serve_each(calls, self._rerank)

    async def answer(self, calls: Sequence[Call[GenerateRequest]]) -> list[Outcome[tuple[GenerationEvent, ...]]]:
        return await serve_each(calls, self._answer)

    async def _rerank(self, request: RerankRequest, budget_s: float) -> Timed[Vector]:
        await self._work()
        return Timed(np.arange(len(request.candidates), dtype=np.float32), StageTiming(compute_s=0.5))

    async def _answer(self, request: GenerateRequest, budget_s: float) -> Timed[tuple[GenerationEvent, ...]]:
        await self._work()
        return Timed((Delta("The moon. [1]"), END), StageTiming())

    async def _work(self) -> None:
        try:
            await asyncio.sleep(self._takes_s)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self._failure is not None:
            raise self._failure


async def test_scores_come_with_the_stage_s_own_timing() -> None:
    scored = await InProcessReranker(Stage()).rerank(ASKED, 60)
    assert scored.value.tolist() == [0, 1]
    assert scored.timing.compute_s == 0.5


async def test_an_answer_comes_as_its_events() -> None:
    assert [event async for event in InProcessAnswerer(Stage()).generate(QUESTION)] == [Delta("The moon. [1]"), END]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (Stage(failure=EngineFailed("it broke")), "it broke"),
        (Stage(failure=ZeroDivisionError()), "the stage failed on this request"),
    ],
)
async def test_a_failure_is_the_caller_s(stage: Stage, expected: str) -> None:
    reranker, answerer = InProcessReranker(stage), InProcessAnswerer(stage)
    with pytest.raises(EngineFailed, match=expected):
        await reranker.rerank(ASKED, 60)
    with pytest.raises(EngineFailed, match=expected):
        await _read(answerer.generate(QUESTION))
    assert list(reranker.read()) == [(DROPPED, ("rerank", "failed"), 1)]
    assert list(answerer.read()) == [(DROPPED, ("generate", "failed"), 1)]


async def test_work_ends_with_its_budget() -> None:
    stage = Stage(takes_s=3600)
    with pytest.raises(DeadlineExceeded):
        await InProcessReranker(stage).rerank(ASKED, 0.01)
    assert stage.cancelled


async def test_who_leaves_stops_the_work() -> None:
    stage = Stage(takes_s=3600)
    reading = asyncio.create_task(_read(InProcessAnswerer(stage).generate(QUESTION)))
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert stage.cancelled


async def _read(events: AsyncGenerator[GenerationEvent]) -> list[GenerationEvent]:
    return [event async for event in events]
