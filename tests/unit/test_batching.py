"""The micro-batcher: what goes into a batch, and what happens to each caller when something goes wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments import telemetry
from deployments.batch_cutting import BatchingConfig, cut_batch, cut_packed
from deployments.batching import MicroBatcher
from deployments.errors import (
    DeadlineExceeded,
    EngineDead,
    EngineFailed,
    InvalidInput,
    Overloaded,
    StageError,
    StageUnavailable,
    TooLarge,
)


class Doubler:
    """Doubles numbers. Its forward pass can be held back; it remembers the batches that it saw."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.raises: Callable[[Sequence[int]], None] = lambda batch: None
        self.prepare_threads: set[str] = set()
        self.run_threads: set[str] = set()

    def prepare(self, items: Sequence[int]) -> list[tuple[int, int] | StageError]:
        self.prepare_threads.add(threading.current_thread().name)
        return [InvalidInput("negative") if item < 0 else (item, max(1, item)) for item in items]

    def run(self, batch: Sequence[int]) -> list[int]:
        self.run_threads.add(threading.current_thread().name)
        self.started.set()
        assert self.go.wait(60)
        self.batches.append(list(batch))
        self.raises(batch)
        return [2 * item for item in batch]

    @asynccontextmanager
    async def held(self, batcher: MicroBatcher[int, int, int]) -> AsyncIterator[None]:
        """While inside, the engine is busy with one item, so that everything submitted waits together."""
        self.go.clear()
        self.started.clear()
        first = asyncio.create_task(batcher.submit([1], 60))
        await asyncio.to_thread(self.started.wait, 60)
        yield
        self.go.set()
        await first
        self.batches.remove([1])


def batcher_of(engine: Doubler, **config: int | float) -> MicroBatcher[int, int, int]:
    return MicroBatcher(engine, BatchingConfig.model_validate(config), "doubler", "embed")


async def settled(batcher: MicroBatcher[int, int, int], num_waiting: int) -> None:
    """Wait until so many items are queued behind the batch in progress, all of them prepared."""
    # The counts are changed by other threads.
    while not batcher.num_waiting == sum(map(len, batcher._ready.values())) == num_waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_results_come_in_the_order_of_the_items() -> None:
    batcher = batcher_of(Doubler())
    answer = await batcher.submit([5, 3, 9], 60)
    assert answer.value == [10, 6, 18]


async def test_what_waits_while_the_engine_is_busy_goes_in_one_batch() -> None:
    engine = Doubler()
    batcher = batcher_of(engine)
    async with engine.held(batcher):
        waiting = [asyncio.create_task(batcher.submit([n], 60)) for n in (7, 8, 9)]
        await settled(batcher, 3)
    assert [answer.value for answer in await asyncio.gather(*waiting)] == [[14], [16], [18]]
    assert engine.batches == [[7, 8, 9]]


async def test_a_batch_is_sorted_by_length_and_keeps_to_the_padded_token_budget() -> None:
    engine = Doubler()
    batcher = batcher_of(engine, max_batch_tokens=40, padding_slack_tokens=1000)
    async with engine.held(batcher):
        waiting = asyncio.create_task(batcher.submit([20, 2, 19, 3, 18, 4], 60))
        await settled(batcher, 6)
    await waiting
    assert sorted(n for batch in engine.batches for n in batch) == [2, 3, 4, 18, 19, 20]
    for batch in engine.batches:
        assert batch == sorted(batch)
        assert max(batch) * len(batch) <= 40


async def test_the_oldest_item_is_in_the_next_batch_whatever_its_length() -> None:
    engine = Doubler()
    batcher = batcher_of(engine, max_batch_rows=2, padding_slack_tokens=0)
    async with engine.held(batcher):
        oldest = asyncio.create_task(batcher.submit([90], 60))
        await settled(batcher, 1)
        rest = asyncio.create_task(batcher.submit([3, 3, 3, 3], 60))
        await settled(batcher, 5)
    await asyncio.gather(oldest, rest)
    assert engine.batches[0] == [90]


async def test_interactive_items_go_before_bulk_items_but_never_starve_them() -> None:
    engine = Doubler()
    batcher = batcher_of(engine, max_batch_rows=1, interactive_batches_per_bulk=2)
    async with engine.held(batcher):
        bulk = asyncio.create_task(batcher.submit([50, 51], 60, "bulk"))
        await settled(batcher, 2)
        interactive = asyncio.create_task(batcher.submit([5, 6, 7, 8], 60))
        await settled(batcher, 6)
    await asyncio.gather(bulk, interactive)
    order = [batch[0] for batch in engine.batches]
    assert order.index(5) < order.index(50)
    assert order.index(50) < order.index(8)


async def test_tokenisation_and_forward_pass_run_on_two_threads_off_the_event_loop() -> None:
    engine = Doubler()
    batcher = batcher_of(engine)
    await batcher.submit([1, 2], 60)
    here = {threading.current_thread().name}
    assert engine.prepare_threads.isdisjoint(here | engine.run_threads)
    assert engine.run_threads.isdisjoint(here)


async def test_tokenisation_goes_on_while_the_engine_is_busy() -> None:
    engine = Doubler()
    batcher = batcher_of(engine)
    async with engine.held(batcher):
        refused = await batcher.submit([-1], 60)
        assert isinstance(refused.value[0], InvalidInput)


async def test_a_cancelled_caller_is_dropped_before_the_forward_pass() -> None:
    engine = Doubler()
    batcher = batcher_of(engine)
    async with engine.held(batcher):
        leaving = asyncio.create_task(batcher.submit([7], 60))
        staying = asyncio.create_task(batcher.submit([8], 60))
        await settled(batcher, 2)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    assert (await staying).value == [16]
    assert engine.batches == [[8]]


async def test_an_expired_item_is_dropped_before_the_forward_pass() -> None:
    engine = Doubler()
    batcher = batcher_of(engine)
    async with engine.held(batcher):
        staying = asyncio.create_task(batcher.submit([8], 60))
        await settled(batcher, 1)
        with pytest.raises(DeadlineExceeded):
            await batcher.submit([7], 0.02)
    await staying
    assert engine.batches == [[8]]


async def test_poisoned_item_fails_alone_not_its_batch_neighbours() -> None:
    engine = Doubler()

    def poison(batch: Sequence[int]) -> None:
        if 13 in batch:
            raise ValueError("thirteen")

    engine.raises = poison
    batcher = batcher_of(engine)
    async with engine.held(batcher):
        waiting = [asyncio.create_task(batcher.submit([n], 60)) for n in (11, 12, 13, 14, 15)]
        await settled(batcher, 5)
    results = [(await task).value[0] for task in waiting]
    assert isinstance(results[2], EngineFailed)
    assert [r for r in results if not isinstance(r, StageError)] == [22, 24, 28, 30]
    batcher.check_health()


async def test_item_refused_by_the_tokeniser_does_not_fail_the_others_of_its_request() -> None:
    answer = await batcher_of(Doubler()).submit([4, -4], 60)
    assert answer.value[0] == 8
    assert isinstance(answer.value[1], InvalidInput)


@pytest.mark.parametrize("death", [EngineDead("the device is lost"), SystemExit()])
async def test_death_of_the_engine_fails_all_waiters_at_once_and_turns_health_red(death: BaseException) -> None:
    engine = Doubler()

    def die(batch: Sequence[int]) -> None:
        if 1 not in batch:
            raise death

    engine.raises = die
    batcher = batcher_of(engine, max_batch_rows=1)
    async with engine.held(batcher):
        waiting = [asyncio.create_task(batcher.submit([n], 60)) for n in (7, 8, 9)]
        await settled(batcher, 3)
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)
    assert all(isinstance(result, StageUnavailable) for result in results)
    with pytest.raises(StageUnavailable):
        batcher.check_health()
    with pytest.raises(StageUnavailable):
        await batcher.submit([1], 60)


async def test_an_engine_that_loses_results_is_dead() -> None:
    class Forgetful(Doubler):
        def run(self, batch: Sequence[int]) -> list[int]:
            return []

    batcher = batcher_of(Forgetful())
    with pytest.raises(EngineDead, match="0 results for 2 items"):
        await batcher.submit([1, 2], 60)


async def test_full_queue_refuses_and_takes_again_once_drained() -> None:
    engine = Doubler()
    batcher = batcher_of(engine, max_waiting_items=2)
    async with engine.held(batcher):
        waiting = asyncio.create_task(batcher.submit([7, 8], 60))
        await settled(batcher, 2)
        with pytest.raises(Overloaded):
            await batcher.submit([9], 60)
    await waiting
    assert (await batcher.submit([9], 60)).value == [18]
    assert batcher.num_waiting == 0


async def test_timing_splits_the_time_in_the_stage_into_wait_and_compute() -> None:
    engine = Doubler()
    batcher = batcher_of(engine)
    async with engine.held(batcher):
        started = time.perf_counter()
        waiting = asyncio.create_task(batcher.submit([7, 8], 60))
        await settled(batcher, 2)
        await asyncio.sleep(0.05)
    timing = (await waiting).timing
    elapsed = time.perf_counter() - started
    assert timing.batch_size == 2
    assert timing.batch_wait_s >= 0.05
    assert 0 < timing.compute_s <= elapsed - timing.batch_wait_s


async def test_closing_fails_those_who_wait() -> None:
    engine = Doubler()
    batcher = batcher_of(engine)
    engine.go.clear()
    waiting = asyncio.create_task(batcher.submit([7], 60))
    await asyncio.to_thread(engine.started.wait, 60)
    batcher.close()
    with pytest.raises(StageUnavailable, match="shutting down"):
        await waiting
    engine.go.set()


@given(
    lengths=st.lists(st.integers(1, 600), min_size=1, max_size=60),
    data=st.data(),
    budget=st.integers(1, 4000),
    rows=st.integers(1, 40),
    slack=st.integers(0, 600),
)
def test_a_cut_holds_its_anchor_and_keeps_every_limit(
    lengths: list[int], data: st.DataObject, budget: int, rows: int, slack: int
) -> None:
    lengths.sort()
    anchor = data.draw(st.integers(0, len(lengths) - 1))
    config = BatchingConfig(max_batch_tokens=budget, max_batch_rows=rows, padding_slack_tokens=slack)
    lo, hi = cut_batch(lengths, anchor, config)
    batch = lengths[lo:hi]
    assert lo <= anchor < hi
    assert len(batch) <= rows
    assert len(batch) == 1 or max(batch) * len(batch) <= budget
    padding = max(batch) * len(batch) - sum(batch)
    assert padding <= slack + config.max_padding_share * sum(batch)


def test_padding_that_costs_little_keeps_fewer_items_apart() -> None:
    config = BatchingConfig(max_batch_tokens=400, padding_slack_tokens=8, max_padding_share=0)
    lengths = [10, 10, 20, 20, 80]
    assert cut_batch(lengths, 4, config) == (4, 5)
    assert cut_batch(lengths, 4, config, padding_cost=0.05) == (2, 5)
    assert cut_batch(lengths, 4, config, padding_cost=0.03) == (0, 5)


def test_items_of_one_length_are_batched_up_to_the_budget() -> None:
    lo, hi = cut_batch([10] * 100, 50, BatchingConfig(max_batch_tokens=200, max_batch_rows=256))
    assert hi - lo == 20


def test_lengths_that_differ_much_are_not_padded_to_each_other() -> None:
    config = BatchingConfig(max_batch_tokens=4096, padding_slack_tokens=512)
    lengths = [8] * 50 + [500] * 4
    assert cut_batch(lengths, 53, config) == (49, 54)
    assert cut_batch(lengths, 0, config) == (0, 50)


async def test_a_question_is_tokenised_before_the_bulk_that_came_first() -> None:
    engine = Doubler()
    order: list[int] = []
    gate = threading.Event()
    prepare = engine.prepare

    def slow_prepare(items: Sequence[int]) -> list[tuple[int, int] | StageError]:
        assert gate.wait(60)
        order.extend(items)
        return prepare(items)

    engine.prepare = slow_prepare  # type: ignore[method-assign]
    batcher = batcher_of(engine)
    bulk = asyncio.create_task(batcher.submit(list(range(100, 300)), 60, "bulk"))
    await asyncio.sleep(0.01)
    question = asyncio.create_task(batcher.submit([7], 60))
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(bulk, question)
    assert order.index(7) < 20


async def test_bulk_is_tokenised_though_questions_keep_coming() -> None:
    engine = Doubler()
    order: list[int] = []
    questions: list[asyncio.Task[object]] = []
    came = threading.Semaphore(0)
    loop = asyncio.get_running_loop()
    prepare = engine.prepare

    def ask() -> None:
        questions.append(asyncio.create_task(batcher.submit([7], 60)))
        # Behind the first step of the new task, which is when its item arrives.
        loop.call_soon(came.release)

    def prepare_while_one_more_comes(items: Sequence[int]) -> list[tuple[int, int] | StageError]:
        order.extend(items)
        if len(order) < 20:
            loop.call_soon_threadsafe(ask)
            assert came.acquire(timeout=10)
        return prepare(items)

    engine.prepare = prepare_while_one_more_comes  # type: ignore[method-assign]
    batcher = batcher_of(engine, interactive_batches_per_bulk=3)
    await asyncio.gather(batcher.submit([7], 60), batcher.submit([50], 60, "bulk"))
    await asyncio.gather(*questions)
    assert order.index(50) == 3


async def test_more_items_than_can_ever_wait_are_too_many_not_an_overload() -> None:
    with pytest.raises(TooLarge, match="2 items at a time, not 3"):
        await batcher_of(Doubler(), max_waiting_items=2).submit([1, 2, 3], 60)


class Device(Doubler):
    """A doubler with a queue: what was launched is computed when `go` is set, one batch after the other.

    Nothing is launched before `may_launch` is set.
    """

    def __init__(self, padding_cost: float = 1.0) -> None:
        super().__init__()
        self.padding_cost = padding_cost
        self.launched: list[list[int]] = []
        self.may_launch = threading.Event()
        self.may_launch.set()

    def launch(self, batch: Sequence[int]) -> Callable[[], list[int]]:
        assert self.may_launch.wait(60)
        self.launched.append(list(batch))
        return lambda: self.run(batch)


async def launches(engine: Device, count: int) -> None:
    while len(engine.launched) < count:  # noqa: ASYNC110 - launched by another thread
        await asyncio.sleep(0.001)


async def test_a_full_batch_is_launched_behind_the_one_that_runs() -> None:
    engine = Device()
    batcher = batcher_of(engine, max_batch_rows=2)
    engine.go.clear()
    engine.may_launch.clear()
    waiting = asyncio.create_task(batcher.submit([3, 4, 5, 6, 7], 60))
    await settled(batcher, 3)
    engine.may_launch.set()
    await launches(engine, 2)
    await asyncio.to_thread(engine.started.wait, 60)
    assert engine.launched == [[3, 4], [5, 6]]
    assert engine.batches == []
    engine.go.set()
    assert (await waiting).value == [6, 8, 10, 12, 14]


async def test_a_batch_with_room_waits_for_the_engine_so_that_others_may_join() -> None:
    engine = Device()
    batcher = batcher_of(engine, max_batch_rows=2)
    engine.go.clear()
    first = asyncio.create_task(batcher.submit([3, 4, 5], 60))
    await asyncio.to_thread(engine.started.wait, 60)
    joining = asyncio.create_task(batcher.submit([6], 60))
    await settled(batcher, 2)
    assert engine.launched == [[3, 4]]
    engine.go.set()
    await asyncio.gather(first, joining)
    assert engine.launched == [[3, 4], [5, 6]]


async def test_bulk_is_never_launched_ahead_where_a_question_could_not_overtake_it() -> None:
    engine = Device()
    batcher = batcher_of(engine, max_batch_rows=2)
    engine.go.clear()
    bulk = asyncio.create_task(batcher.submit([30, 31, 32, 33, 34], 60, "bulk"))
    await asyncio.to_thread(engine.started.wait, 60)
    question = asyncio.create_task(batcher.submit([7], 60))
    await settled(batcher, 4)
    assert engine.launched == [[30, 31]]
    engine.go.set()
    await asyncio.gather(bulk, question)
    assert engine.launched[1] == [7]


@pytest.mark.parametrize("fails_at", ["launch", "end"])
async def test_a_poisoned_item_of_a_launched_batch_fails_alone(fails_at: str) -> None:
    engine = Device()

    def poison(batch: Sequence[int]) -> None:
        if 13 in batch:
            raise ValueError("thirteen")

    def refuse(batch: Sequence[int]) -> Callable[[], list[int]]:
        poison(batch)
        return launch(batch)

    launch = engine.launch
    engine.raises = poison
    if fails_at == "launch":
        engine.launch = refuse  # type: ignore[method-assign]
    results = (await batcher_of(engine).submit([11, 12, 13, 14], 60)).value
    assert isinstance(results[2], EngineFailed)
    assert [r for r in results if not isinstance(r, StageError)] == [22, 24, 28]


@pytest.mark.parametrize("dies_at", ["launch", "end"])
async def test_a_device_that_is_lost_fails_all_waiters_at_once(dies_at: str) -> None:
    engine = Device()

    def die(batch: Sequence[int]) -> NoReturn:
        raise EngineDead("the device is lost")

    if dies_at == "launch":
        engine.launch = die  # type: ignore[method-assign]
    else:
        engine.raises = die
    batcher = batcher_of(engine, max_batch_rows=1)
    waiting = [asyncio.create_task(batcher.submit([n], 60)) for n in (7, 8, 9)]
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)
    assert all(isinstance(result, StageUnavailable) for result in results)
    with pytest.raises(StageUnavailable):
        batcher.check_health()


async def test_time_behind_another_batch_is_no_time_of_computing() -> None:
    engine = Device()
    batcher = batcher_of(engine, max_batch_rows=1)
    engine.go.clear()
    engine.may_launch.clear()
    started = time.perf_counter()
    waiting = [asyncio.create_task(batcher.submit([n], 60)) for n in (7, 8, 9)]
    await settled(batcher, 2)
    engine.may_launch.set()
    await launches(engine, 2)
    await asyncio.sleep(0.05)
    engine.go.set()
    timings = [answer.timing for answer in await asyncio.gather(*waiting)]
    elapsed = time.perf_counter() - started
    busy = next(value for metric, _, value in batcher.read() if metric == telemetry.REPLICA_BUSY)
    assert 0.05 <= busy <= elapsed
    assert sum(timing.compute_s for timing in timings) == pytest.approx(busy)


async def test_an_engine_without_padding_takes_the_oldest_items_whatever_their_lengths() -> None:
    engine = Device(padding_cost=0.0)
    batcher = batcher_of(engine, max_batch_tokens=100)
    async with engine.held(batcher):
        waiting = asyncio.create_task(batcher.submit([90, 3, 6, 2, 50], 60))
        await settled(batcher, 5)
    assert (await waiting).value == [180, 6, 12, 4, 100]
    assert engine.batches == [[90, 3, 6], [2, 50]]
    padded, tokens = (
        next(value for metric, _, value in batcher.read() if metric == wanted)
        for wanted in (telemetry.BATCH_PADDED, telemetry.BATCH_TOKENS)
    )
    assert padded == tokens


@given(
    lengths=st.lists(st.integers(1, 600), min_size=1, max_size=60), budget=st.integers(1, 4000), rows=st.integers(1, 40)
)
def test_a_packed_batch_takes_as_many_as_fit_and_at_least_one(lengths: list[int], budget: int, rows: int) -> None:
    count = cut_packed(lengths, BatchingConfig(max_batch_tokens=budget, max_batch_rows=rows))
    assert 1 <= count <= min(rows, len(lengths))
    assert count == 1 or sum(lengths[:count]) <= budget
    assert count in (rows, len(lengths)) or sum(lengths[: count + 1]) > budget
