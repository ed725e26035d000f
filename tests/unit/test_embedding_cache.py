"""The cache in front of an embedder: what is computed at all, for whom, and who hears of a failure."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from deployments.contracts import Embeddings, EmbedRequest, StageTiming, Timed, Vector
from deployments.embedding_cache import CachedEmbedder, EmbeddingCacheConfig
from deployments.errors import (
    DeadlineExceeded,
    EngineFailed,
    InputTooLong,
    InvalidInput,
    Overloaded,
    StageError,
    StageUnavailable,
)
from tests.fakes import MAX_TOKENS, FakeEmbedder, count_tokens

BUDGET_S = 30.0
TOO_LONG = "word " * MAX_TOKENS
TIMING = StageTiming(batch_wait_s=0.0, compute_s=1e-9, batch_size=7)

caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")


@dataclass
class Inner:
    """An embedder behind a gate that remembers the texts and the budget of each call and which were cancelled."""

    fake: FakeEmbedder = field(default_factory=FakeEmbedder)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    budgets: list[float] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    cancelled: int = 0
    poison: str | None = None
    turns_to_stop: int = 0
    error_when_stopped: StageError | None = None
    timing: StageTiming = TIMING

    def __post_init__(self) -> None:
        self.gate.set()

    async def embed(self, request: EmbedRequest, budget_s: float) -> Timed[Embeddings]:
        self.calls.append(request.texts)
        self.budgets.append(budget_s)
        self.callers.append(caller.get())
        try:
            async with asyncio.timeout(budget_s):
                await self.gate.wait()
        except TimeoutError:
            raise DeadlineExceeded("the embedder had no time left") from None
        except asyncio.CancelledError:
            self.cancelled += 1
            await turns(self.turns_to_stop)
            if self.error_when_stopped is not None:
                raise self.error_when_stopped from None
            raise
        if self.poison in request.texts:
            raise EngineFailed("the engine failed on one text")
        return Timed((await self.fake.embed(request, budget_s)).value, self.timing)


@dataclass
class Kitchen:
    """A cached embedder and the inner one behind it."""

    inner: Inner
    cached: CachedEmbedder

    async def embed(self, *texts: str, budget_s: float = BUDGET_S, truncate: bool = True) -> Timed[Embeddings]:
        return await self.cached.embed(EmbedRequest(texts, truncate=truncate), budget_s)

    def start(self, *texts: str, budget_s: float = BUDGET_S, truncate: bool = True) -> asyncio.Task[Timed[Embeddings]]:
        return asyncio.create_task(self.embed(*texts, budget_s=budget_s, truncate=truncate))


async def truth(*texts: str) -> Vector:
    """The vectors without any cache."""
    return (await FakeEmbedder().embed(EmbedRequest(texts), BUDGET_S)).value.vectors


def kitchen_with(model: str | Callable[[], str] = "model", **config: int) -> Kitchen:
    inner = Inner()
    return Kitchen(inner, CachedEmbedder(inner, model, EmbeddingCacheConfig(**config)))


@pytest.fixture
def kitchen() -> Kitchen:
    return kitchen_with()


@pytest.fixture
def closed(kitchen: Kitchen) -> Kitchen:
    """Its inner embedder answers when the gate is opened."""
    kitchen.inner.gate.clear()
    return kitchen


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def failure(work: asyncio.Task[Any]) -> BaseException | None:
    await asyncio.wait([work])
    return work.exception()


async def test_a_text_is_computed_once(kitchen: Kitchen) -> None:
    first, second = await kitchen.embed("rust"), await kitchen.embed("rust")
    assert kitchen.inner.calls == [("rust",)]
    assert np.array_equal(first.value.vectors, second.value.vectors)
    assert np.array_equal(second.value.vectors, await truth("rust"))


async def test_only_what_is_missing_is_computed_in_one_call_and_rows_keep_the_order_of_the_texts(
    kitchen: Kitchen,
) -> None:
    await kitchen.embed("b", "d")
    texts = ("a", "b", "c", "d", "e")
    embedded = await kitchen.embed(*texts)
    assert kitchen.inner.calls[1:] == [("a", "c", "e")]
    assert np.array_equal(embedded.value.vectors, await truth(*texts))
    assert embedded.value.vectors.dtype == np.float32


async def test_a_text_that_stands_twice_in_a_request_is_computed_once(kitchen: Kitchen) -> None:
    embedded = await kitchen.embed("a", "b", "a")
    assert kitchen.inner.calls == [("a", "b")]
    assert np.array_equal(embedded.value.vectors, await truth("a", "b", "a"))


@pytest.mark.parametrize(
    "request_",
    [EmbedRequest(("a",), "passage"), EmbedRequest(("a",), priority="bulk"), EmbedRequest(())],
    ids=["passages", "bulk", "no texts"],
)
async def test_passages_and_bulk_pass_through(kitchen: Kitchen, request_: EmbedRequest) -> None:
    for _ in range(2):
        await kitchen.cached.embed(request_, BUDGET_S)
    assert kitchen.inner.calls == [request_.texts] * 2
    stats = kitchen.cached.stats()
    assert (stats.hits, stats.misses, stats.num_entries) == (0, 0, 0)


async def test_switched_off_every_request_passes_through() -> None:
    kitchen = kitchen_with(max_bytes=0)
    kitchen.inner.gate.clear()
    asking = [kitchen.start("a", "a") for _ in range(2)]
    await turns()
    assert kitchen.inner.calls == [("a", "a")] * 2
    kitchen.inner.gate.set()
    await asyncio.gather(*asking)


async def test_a_text_that_may_be_cut_is_not_the_answer_to_one_that_may_not(kitchen: Kitchen) -> None:
    await kitchen.embed(TOO_LONG)
    with pytest.raises(InputTooLong):
        await kitchen.embed(TOO_LONG, truncate=False)


async def test_vectors_of_another_model_are_not_given() -> None:
    models = ["small"]
    kitchen = kitchen_with(lambda: models[0])
    await kitchen.embed("a")
    models[0] = "large"
    await kitchen.embed("a")
    assert kitchen.inner.calls == [("a",), ("a",)]


async def test_old_vectors_make_room_for_new_ones() -> None:
    kitchen = kitchen_with(max_bytes=5000)
    for text in "abcdefghijklmnop":
        await kitchen.embed(text)
    await kitchen.embed("p")
    await kitchen.embed("a")
    assert kitchen.inner.calls[16:] == [("a",)]
    stats = kitchen.cached.stats()
    assert 0 < stats.num_bytes <= 5000
    assert stats.num_entries + stats.evictions == 17


async def test_a_vector_that_is_too_large_to_be_kept_is_still_given() -> None:
    kitchen = kitchen_with(max_bytes=1)
    assert np.array_equal((await kitchen.embed("a")).value.vectors, await truth("a"))
    assert kitchen.cached.stats().num_entries == 0


async def test_what_a_caller_writes_into_its_vectors_reaches_nobody_else(kitchen: Kitchen) -> None:
    for _ in range(2):
        embedded = await kitchen.embed("a")
        assert np.array_equal(embedded.value.vectors, await truth("a"))
        embedded.value.vectors[:] = 0.0


async def test_tokens_are_those_of_the_inner_embedder_for_texts_alone_and_of_one_call(kitchen: Kitchen) -> None:
    texts = ("one", "three words here", "a much longer text of eight words altogether")
    for _ in range(2):
        assert (await kitchen.embed(*texts)).value.num_tokens == sum(map(count_tokens, texts))
    for text in ("two words", "two words", ""):
        assert (await kitchen.embed(text)).value.num_tokens == count_tokens(text)


async def test_the_timing_is_that_of_what_was_computed(kitchen: Kitchen) -> None:
    await kitchen.embed("a")
    assert (await kitchen.embed("a", "b")).timing == TIMING


async def test_with_every_text_cached_nothing_was_computed(kitchen: Kitchen) -> None:
    await kitchen.embed("a", "b")
    assert (await kitchen.embed("b", "a", "a")).timing == StageTiming(batch_size=0)


async def test_who_joins_late_does_not_report_more_time_than_it_waited(closed: Kitchen) -> None:
    closed.inner.timing = StageTiming(batch_wait_s=1000.0, compute_s=1000.0, batch_size=3)
    first = closed.start("a")
    await turns()
    joined = closed.start("a")
    await turns()
    closed.inner.gate.set()
    timing = (await joined).timing
    assert timing.batch_wait_s + timing.compute_s < 1000.0
    assert timing.batch_size == 3
    await first


async def test_texts_that_are_being_computed_are_awaited_and_not_computed_again(closed: Kitchen) -> None:
    asking = [closed.start("a", "b")]
    await turns()
    asking += [closed.start("b", "c"), closed.start("a"), closed.start("c", "b", "a")]
    await turns()
    assert closed.inner.calls == [("a", "b"), ("c",)]
    closed.inner.gate.set()
    vectors = [embedded.value.vectors for embedded in await asyncio.gather(*asking)]
    wanted = [("a", "b"), ("b", "c"), ("a",), ("c", "b", "a")]
    for ours, texts in zip(vectors, wanted, strict=True):
        assert np.array_equal(ours, await truth(*texts))
    assert closed.inner.calls == [("a", "b"), ("c",)]


async def test_hits_misses_and_joined_texts_are_counted(closed: Kitchen) -> None:
    first = closed.start("a", "b", "b")
    await turns()
    second = closed.start("a", "c")
    await turns()
    closed.inner.gate.set()
    await asyncio.gather(first, second)
    await closed.embed("a", "c", "a")
    stats = closed.cached.stats()
    assert (stats.hits, stats.misses, stats.joined, stats.num_entries) == (2, 3, 1, 3)


async def test_the_inner_embedder_gets_the_time_that_the_request_has(kitchen: Kitchen) -> None:
    await kitchen.embed("a", budget_s=60.0)
    assert 0.0 < kitchen.inner.budgets[0] <= 60.0


async def test_without_time_left_not_even_a_cached_vector_is_given(kitchen: Kitchen) -> None:
    await kitchen.embed("a")
    with pytest.raises(DeadlineExceeded):
        await kitchen.embed("a", budget_s=0.0)


async def test_a_waiter_whose_time_ends_does_not_disturb_the_others(closed: Kitchen) -> None:
    patient = closed.start("a")
    await turns()
    assert isinstance(await failure(closed.start("a", budget_s=0.01)), DeadlineExceeded)
    closed.inner.gate.set()
    assert np.array_equal((await patient).value.vectors, await truth("a"))
    assert (closed.inner.calls, closed.inner.cancelled) == ([("a",)], 0)


async def test_a_computation_goes_on_when_the_request_that_started_it_is_cancelled(closed: Kitchen) -> None:
    starter = closed.start("a", "b")
    await turns()
    waiter = closed.start("b")
    await turns()
    starter.cancel()
    await turns()
    closed.inner.gate.set()
    assert np.array_equal((await waiter).value.vectors, await truth("b"))
    assert (closed.inner.calls, closed.inner.cancelled) == ([("a", "b")], 0)
    assert starter.cancelled()


async def test_a_computation_starts_with_the_longest_time_of_those_who_wait(closed: Kitchen) -> None:
    hurried, patient = closed.start("a", budget_s=0.01), closed.start("a")
    assert isinstance(await failure(hurried), DeadlineExceeded)
    closed.inner.gate.set()
    await patient
    assert len(closed.inner.budgets) == 1
    assert closed.inner.budgets[0] > 1.0


@pytest.mark.virtual_time
async def test_who_came_later_gets_a_result_when_the_starter_runs_out_of_time(
    closed: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", asyncio.get_running_loop().time)
    starter = closed.start("a", "b", budget_s=0.01)
    await turns()
    waiters = [closed.start("a"), closed.start("b", budget_s=BUDGET_S / 2)]
    assert isinstance(await failure(starter), DeadlineExceeded)
    await turns()
    closed.inner.gate.set()
    first, second = await asyncio.gather(*waiters)
    assert np.array_equal(first.value.vectors, await truth("a"))
    assert np.array_equal(second.value.vectors, await truth("b"))
    assert closed.inner.calls == [("a", "b")] * 2
    assert closed.inner.budgets[1] > BUDGET_S / 2


async def test_an_embedder_that_is_always_late_is_not_asked_again_and_again(kitchen: Kitchen) -> None:
    kitchen.inner.fake.faults.error = DeadlineExceeded("late")
    asking = [kitchen.start("a") for _ in range(5)]
    assert {type(await failure(task)) for task in asking} == {DeadlineExceeded}
    assert len(kitchen.inner.calls) <= len(asking)


async def test_a_computation_is_cancelled_when_nobody_waits_for_it(closed: Kitchen) -> None:
    asking = [closed.start("a", "b"), closed.start("b")]
    await turns()
    asking[0].cancel()
    await turns()
    assert closed.inner.cancelled == 0
    asking[1].cancel()
    await turns()
    assert closed.inner.cancelled == 1


async def test_a_computation_that_is_being_stopped_is_not_joined_and_does_not_touch_the_next_one(
    closed: Kitchen,
) -> None:
    closed.inner.turns_to_stop = 10
    leaving = closed.start("a")
    await turns()
    leaving.cancel()
    await turns()
    afresh = [closed.start("a")]
    await turns(20)
    afresh.append(closed.start("a"))
    await turns()
    closed.inner.gate.set()
    for embedded in await asyncio.gather(*afresh):
        assert np.array_equal(embedded.value.vectors, await truth("a"))
    assert closed.inner.calls == [("a",), ("a",)]


@pytest.mark.parametrize(
    "error", [Overloaded("full", retry_after_s=3.0), StageUnavailable("starting"), ZeroDivisionError("bug")]
)
async def test_a_failure_reaches_all_who_wait_and_is_not_kept(closed: Kitchen, error: Exception) -> None:
    closed.inner.fake.faults.error = error
    asking = [closed.start("a"), closed.start("a", "b"), closed.start("a")]
    await turns()
    closed.inner.gate.set()
    failures = [await failure(task) for task in asking]
    assert [(type(raised), str(raised)) for raised in failures] == [(type(error), str(error))] * 3
    assert [getattr(raised, "retry_after_s", None) for raised in failures] == [
        getattr(error, "retry_after_s", None)
    ] * 3
    closed.inner.fake.faults.error = None
    assert np.array_equal((await closed.embed("a", "b")).value.vectors, await truth("a", "b"))


async def test_those_who_wait_do_not_share_one_error_object(closed: Kitchen) -> None:
    closed.inner.fake.faults.error = Overloaded("full")
    asking = [closed.start("a"), closed.start("a")]
    await turns()
    closed.inner.gate.set()
    one, other = [await failure(task) for task in asking]
    assert one is not other


async def test_a_request_fails_at_once_although_another_of_its_computations_is_still_under_way(
    closed: Kitchen,
) -> None:
    slow = closed.start("slow")
    await turns()
    closed.inner.gate, gate = asyncio.Event(), closed.inner.gate
    closed.inner.gate.set()
    closed.inner.fake.faults.error = Overloaded("full")
    with pytest.raises(Overloaded):
        await closed.embed("slow", "new")
    closed.inner.fake.faults.error = None
    gate.set()
    assert np.array_equal((await slow).value.vectors, await truth("slow"))


async def test_a_text_that_is_refused_does_not_fail_the_texts_that_others_wait_for(closed: Kitchen) -> None:
    bad = closed.start("a", TOO_LONG, "b", truncate=False)
    await turns()
    good = [closed.start("a", truncate=False), closed.start("c", "b", truncate=False)]
    also_bad = closed.start(TOO_LONG, truncate=False)
    await turns()
    closed.inner.gate.set()
    first, second = await asyncio.gather(*good)
    assert np.array_equal(first.value.vectors, await truth("a"))
    assert np.array_equal(second.value.vectors, await truth("c", "b"))
    assert isinstance(await failure(bad), InputTooLong)
    assert isinstance(await failure(also_bad), InputTooLong)


async def test_a_text_that_the_engine_fails_on_does_not_fail_the_texts_that_others_wait_for(closed: Kitchen) -> None:
    closed.inner.poison = "poison"
    bad = closed.start("a", "poison")
    await turns()
    good = closed.start("a")
    await turns()
    closed.inner.gate.set()
    assert np.array_equal((await good).value.vectors, await truth("a"))
    assert isinstance(await failure(bad), EngineFailed)


async def test_a_refused_request_for_which_nobody_else_waits_is_one_call(kitchen: Kitchen) -> None:
    with pytest.raises(InvalidInput):
        await kitchen.embed("a", TOO_LONG, truncate=False)
    assert len(kitchen.inner.calls) == 1


@pytest.mark.parametrize("begun_turns_ago", [1, 5])
async def test_a_computation_that_is_cancelled_from_outside_fails_those_who_wait(
    closed: Kitchen, begun_turns_ago: int
) -> None:
    asking = closed.start("a")
    await turns(begun_turns_ago)
    for task in asyncio.all_tasks() - {asyncio.current_task(), asking}:
        task.cancel()
    assert isinstance(await failure(asking), StageUnavailable)
    closed.inner.gate.set()
    assert np.array_equal((await closed.embed("a")).value.vectors, await truth("a"))


async def test_a_computation_is_nobodys_child_although_somebody_started_it(kitchen: Kitchen) -> None:
    for name in ("alice", "bob"):
        caller.set(name)
        await kitchen.embed(name)
    assert kitchen.inner.callers == ["nobody", "nobody"]


async def test_an_error_that_nobody_is_left_to_hear_is_not_logged(
    closed: Kitchen, caplog: pytest.LogCaptureFixture
) -> None:
    closed.inner.error_when_stopped = StageUnavailable("dropped")
    leaving = closed.start("a")
    await turns()
    leaving.cancel()
    await turns()
    gc.collect()
    assert closed.inner.cancelled == 1
    assert caplog.records == []
