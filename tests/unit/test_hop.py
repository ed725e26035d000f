"""Coalesced hops: what travels together, and that each item keeps its own fate."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deployments.contracts import Call, Outcome, StageTiming, Timed
from deployments.errors import DeadlineExceeded, EngineDead, EngineFailed, InvalidInput, Overloaded, StageUnavailable
from deployments.hop import Hop, HopConfig, serve_each
from deployments.telemetry import DROPPED

Answer = Callable[[list[Call[int]]], Awaitable[list[Outcome[int]]]]


class Stage:
    """Doubles numbers behind a gate; remembers the calls it got and which were cancelled."""

    def __init__(self) -> None:
        self.calls: list[list[Call[int]]] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []

    def call(self, calls: list[Call[int]]) -> Response:
        self.calls.append(calls)
        return Response(asyncio.ensure_future(self._answer(calls)), self)

    async def _answer(self, calls: list[Call[int]]) -> list[Outcome[int]]:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop()
        return await serve_each(calls, self._double)

    async def _double(self, number: int, budget_s: float) -> Timed[int]:
        if number < 0:
            raise InvalidInput("negative")
        if number == 13:
            raise ZeroDivisionError
        return Timed(2 * number, StageTiming(compute_s=0.5))


class Response:
    """Like Ray Serve's: giving up the await stops nothing."""

    def __init__(self, task: asyncio.Future[Any], stage: Stage) -> None:
        self._task = task
        self._stage = stage

    def __await__(self) -> Any:
        return asyncio.shield(self._task).__await__()

    def cancel(self) -> None:
        self._stage.cancelled += not self._task.done()
        self._task.cancel()


def hop_to(stage: Stage, **config: int) -> Hop[int, int]:
    return Hop("double", stage.call, HopConfig(**config))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_requests_that_arrive_together_travel_in_one_call() -> None:
    stage = Stage()
    answers = await asyncio.gather(*(hop(n, 60) for hop in [hop_to(stage)] for n in (1, 2, 3)))
    assert [answer.value for answer in answers] == [2, 4, 6]
    assert [[call.request for call in calls] for calls in stage.calls] == [[1, 2, 3]]


async def test_what_waits_while_all_calls_are_in_flight_travels_in_the_next_one() -> None:
    stage = Stage()
    stage.gate.clear()
    hop = hop_to(stage, max_calls_in_flight=1)
    first = asyncio.create_task(hop(1, 60))
    await turns()
    rest = [asyncio.create_task(hop(n, 60)) for n in (2, 3, 4)]
    await turns()
    assert len(stage.calls) == 1
    stage.gate.set()
    await asyncio.gather(first, *rest)
    assert [[call.request for call in calls] for calls in stage.calls] == [[1], [2, 3, 4]]


async def test_a_call_carries_at_most_its_bytes_but_always_one_request() -> None:
    stage = Stage()
    hop = hop_to(stage, max_call_bytes=5)
    sizes = {1: 3, 2: 2, 3: 9, 4: 1}
    await asyncio.gather(*(hop(number, 60, size) for number, size in sizes.items()))
    assert [[call.request for call in calls] for calls in stage.calls] == [[1, 2], [3], [4]]


async def test_each_item_has_its_own_result_error_and_timing() -> None:
    hop = hop_to(Stage())
    good, bad, broken = await asyncio.gather(hop(1, 60), hop(-1, 60), hop(13, 60), return_exceptions=True)
    assert good == Timed(2, StageTiming(compute_s=0.5))
    assert isinstance(bad, InvalidInput)
    assert isinstance(broken, EngineFailed)
    assert "ZeroDivision" not in broken.message
    assert (DROPPED, ("double", "failed"), 1) in list(hop.read())


async def test_each_item_of_a_call_that_failed_is_counted_as_dropped_whoever_broke() -> None:
    stage = Stage()
    stage.failures = [StageUnavailable("dead"), StageUnavailable("dead")]
    hop = hop_to(stage)
    answers = await asyncio.gather(*(hop(number, 60) for number in (1, 2)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StageUnavailable, StageUnavailable]
    assert (DROPPED, ("double", "unavailable"), 2) in list(hop.read())


async def test_each_item_has_its_own_deadline() -> None:
    stage = Stage()
    stage.gate.clear()
    hop = hop_to(stage)
    hurried, patient = asyncio.create_task(hop(1, 0.02)), asyncio.create_task(hop(2, 60))
    with pytest.raises(DeadlineExceeded):
        await hurried
    stage.gate.set()
    assert (await patient).value == 4
    budgets = [call.budget_s for call in stage.calls[0]]
    assert budgets[0] <= 0.02 < budgets[1] <= 60


async def test_a_call_whose_every_caller_has_gone_is_cancelled() -> None:
    stage = Stage()
    stage.gate.clear()
    hop = hop_to(stage)
    callers = [asyncio.create_task(hop(n, 60)) for n in (1, 2)]
    await turns()
    callers[0].cancel()
    await turns()
    assert stage.cancelled == 0
    callers[1].cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await turns()
    assert stage.cancelled == 1


async def test_a_caller_that_leaves_before_its_call_is_not_sent() -> None:
    stage = Stage()
    stage.gate.clear()
    hop = hop_to(stage, max_calls_in_flight=1)
    first = asyncio.create_task(hop(1, 60))
    await turns()
    leaving, staying = asyncio.create_task(hop(2, 60)), asyncio.create_task(hop(3, 60))
    await turns()
    leaving.cancel()
    stage.gate.set()
    await asyncio.gather(first, leaving, staying, return_exceptions=True)
    assert [[call.request for call in calls] for calls in stage.calls] == [[1], [3]]


async def test_a_call_that_lost_its_replica_is_made_once_more() -> None:
    stage = Stage()
    stage.failures = [StageUnavailable("the replica died")]
    assert (await hop_to(stage)(1, 60)).value == 2
    stage.failures = [StageUnavailable("dead"), StageUnavailable("dead")]
    with pytest.raises(StageUnavailable):
        await hop_to(stage)(1, 60)


async def test_a_call_cancelled_from_outside_fails_its_callers_instead_of_leaving_them_waiting() -> None:
    stage = Stage()
    stage.gate.clear()
    hop = hop_to(stage)
    caller = asyncio.create_task(hop(1, 60))
    await turns()
    for task in asyncio.all_tasks() - {asyncio.current_task(), caller}:
        if "_answer" in repr(task):
            task.cancel()
    await turns()
    stage.gate.set()
    assert (await caller).value == 2
    assert len(stage.calls) == 2


async def test_full_waiting_room_refuses() -> None:
    stage = Stage()
    stage.gate.clear()
    hop = hop_to(stage, max_calls_in_flight=1, max_waiting=1)
    first = asyncio.create_task(hop(1, 60))
    await turns()
    second = asyncio.create_task(hop(2, 60))
    await turns()
    with pytest.raises(Overloaded):
        await hop(3, 60)
    stage.gate.set()
    await asyncio.gather(first, second)


async def test_an_item_without_budget_is_not_worked_on() -> None:
    worked: list[int] = []

    async def work(number: int, budget_s: float) -> Timed[int]:
        await asyncio.sleep(0)
        worked.append(number)
        return Timed(number, StageTiming())

    late, early = await serve_each([Call(1, 0.0), Call(2, 60)], work)
    assert isinstance(late.error, DeadlineExceeded)
    assert early.unwrap().value == 2
    assert worked == [2]


async def test_a_call_is_nobodys_child_although_somebody_made_it() -> None:
    caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")
    stage = Stage()
    seen: list[str] = []

    def call(calls: list[Call[int]]) -> Response:
        seen.append(caller.get())
        return stage.call(calls)

    hop: Hop[int, int] = Hop("double", call, HopConfig())
    for name in ("alice", "bob"):
        caller.set(name)
        await hop(1, 60)
    assert seen == ["nobody", "nobody"]


async def test_a_call_that_only_finds_dead_engines_is_made_once_more() -> None:
    stage = Stage()

    async def dead_at_first(number: int, budget_s: float) -> Timed[int]:
        if len(stage.calls) == 1:
            raise EngineDead("the device is lost")
        return Timed(number, StageTiming())

    stage._double = dead_at_first  # type: ignore[method-assign]
    assert (await hop_to(stage)(7, 60)).value == 7
    assert len(stage.calls) == 2


async def test_callers_that_have_left_do_not_fill_the_waiting_room() -> None:
    stage = Stage()
    stage.gate.clear()
    hop = hop_to(stage, max_calls_in_flight=1, max_waiting=1)
    first = asyncio.create_task(hop(1, 60))
    await turns()
    with pytest.raises(DeadlineExceeded):
        await hop(2, 0.01)
    third = asyncio.create_task(hop(3, 60))
    await turns()
    stage.gate.set()
    assert [(await caller).value for caller in (first, third)] == [2, 6]
