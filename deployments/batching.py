"""MicroBatcher: turns concurrent requests into well-packed batches for one synchronous engine. Knows nothing of Ray.

Two threads stand behind one event loop. The preparing thread tokenises what arrives while the working thread runs the
engine; the working thread takes its next batch itself, the moment it is free, so no timer and no trip through the
event loop stands between two forward passes. On a device that works through a queue of its own, such as a GPU, not even
the making of the batch does: a second batch is put behind the one that runs, if there are items for more than one.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from deployments import telemetry
from deployments.batch_cutting import BatchingConfig, cut_batch, cut_packed
from deployments.contracts import PRIORITIES, Priority, Stage, StageTiming, Timed
from deployments.errors import (
    DeadlineExceeded,
    EngineDead,
    EngineFailed,
    Overloaded,
    StageError,
    StageUnavailable,
    TooLarge,
)
from deployments.tally import BatchTally, DropTally
from deployments.telemetry import Reading

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)

logger = logging.getLogger(__name__)

BULK_ITEMS_PREPARED_AT_ONCE = 16


class BatchEngine(Protocol[Item_contra, Prepared, Result_co]):
    """What a MicroBatcher runs. Both methods are synchronous; each is only ever called from one thread of its own.

    An engine may also have, each by itself:

    * `padding_cost: float`, what a token of padding costs it as a share of a real one; 1 is taken of one that does not
      say. Where padding costs nothing the oldest items go together, whatever their lengths.
    * `launch(batch)`, for a device with a queue: puts a batch into it, from `run`'s thread, and returns a function that
      waits for what `run` would have returned.
    """

    def prepare(self, items: Sequence[Item_contra]) -> Sequence[tuple[Prepared, int] | StageError]:
        """For each item, in order: what `run` needs and its length in tokens, or why the item can't be taken."""
        ...

    def run(self, batch: Sequence[Prepared]) -> Sequence[Result_co]:
        """One result for each prepared item, in order. Raises EngineDead when this engine will never work again."""
        ...


@dataclass(slots=True, eq=False)
class _Request(Generic[Result]):
    """One `submit`: some items that succeed or fail each on its own and are awaited together."""

    future: asyncio.Future[None]
    results: list[Result | StageError | None]
    missing: int
    expires_at: float
    priority: Priority
    submitted_at: float
    abandoned: bool = False
    compute_s: float = 0.0
    largest_batch: int = 0
    finished_at: float = 0.0

    def settle(self, index: int, result: Result | StageError) -> bool:
        """Store one item's result; true when it was the last one."""
        self.results[index] = result
        self.missing -= 1
        if self.missing == 0:
            self.finished_at = time.monotonic()
        return self.missing == 0


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item, Prepared, Result]):
    item: Item
    request: _Request[Result]
    index: int
    sequence: int
    prepared: Any = None
    length: int = 0


@dataclass(slots=True, eq=False)
class _Running(Generic[Item, Prepared, Result]):
    """A batch in the engine, or in its queue. `collect` waits for one result or error for each entry."""

    entries: list[_Entry[Item, Prepared, Result]]
    started_at: float
    collect: Callable[[], list[Result | StageError]]


def _length(entry: _Entry[Any, Any, Any]) -> int:
    return entry.length


def _sequence(entry: _Entry[Any, Any, Any]) -> int:
    return entry.sequence


class MicroBatcher(Generic[Item, Prepared, Result]):
    """Runs items of many callers through one engine in batches.

    A batch starts as soon as the engine is free, with the oldest waiting item and those of like length around it, or,
    for an engine that computes no padding, with the oldest items.
    Cancelled and expired items are dropped before the forward pass. An item that makes the engine raise fails alone.
    When a thread dies every waiter fails at once and `check_health` raises from then on.
    """

    def __init__(
        self, engine: BatchEngine[Item, Prepared, Result], config: BatchingConfig, name: str, stage: Stage
    ) -> None:
        self._engine = engine
        self._launch: Callable[[Sequence[Prepared]], Callable[[], Sequence[Result]]] | None
        self._launch = getattr(engine, "launch", None)
        self._padding_cost: float = getattr(engine, "padding_cost", 1.0)
        self._order = _length if self._padding_cost else _sequence
        self._engine_free_at = 0.0
        self._stage = stage
        self._batches = BatchTally(stage, self._padding_cost)
        self._dropped = DropTally(stage)
        self._config = config
        self._name = name
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._ready_changed = threading.Condition(self._lock)
        self._raw: dict[Priority, deque[_Entry[Item, Prepared, Result]]] = {name: deque() for name in PRIORITIES}
        self._ready: dict[Priority, list[_Entry[Item, Prepared, Result]]] = {name: [] for name in PRIORITIES}
        self._open: set[_Request[Result]] = set()
        self._num_waiting = 0
        self._prepared_streak = 0
        self._interactive_streak = 0
        self._sequence = itertools.count()
        self._death: StageUnavailable | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._prepare_loop,), name=f"{name}-prepare", daemon=True),
            threading.Thread(target=self._guarded, args=(self._work_loop,), name=f"{name}-work", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    async def submit(
        self, items: Sequence[Item], budget_s: float, priority: Priority = "interactive"
    ) -> Timed[list[Result | StageError]]:
        """Run the items and return, in their order, each one's result or its own error.

        Raises Overloaded when the queue is full, DeadlineExceeded when `budget_s` seconds pass first, StageUnavailable
        when the engine is dead. Cancelling the caller takes its items out of every batch that has not started.
        """
        if not items:
            return Timed([], StageTiming(batch_size=0))
        request = self._enqueue(items, budget_s, priority)
        try:
            async with asyncio.timeout(budget_s):
                await request.future
        except TimeoutError:
            raise DeadlineExceeded(f"{self._name}: no time was left before the work was done") from None
        finally:
            request.abandoned = True
            self._open.discard(request)
        total_s = request.finished_at - request.submitted_at
        wait_s = max(0.0, total_s - request.compute_s)
        results = [result for result in request.results if result is not None]
        return Timed(results, StageTiming(wait_s, request.compute_s, max(1, request.largest_batch)))

    def check_health(self) -> None:
        """Raise StageUnavailable when this batcher will never answer again."""
        if self._death is not None:
            raise StageUnavailable(self._death.message)

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of this batcher."""
        yield from self._batches.read()
        yield from self._dropped.read()
        yield telemetry.WAITING, (self._stage,), self._num_waiting

    @property
    def num_waiting(self) -> int:
        """Items that have arrived and are in no batch yet."""
        return self._num_waiting

    def close(self) -> None:
        """Fail every waiter and end the threads once the batch in progress is over."""
        self._die(StageUnavailable(f"{self._name} is shutting down"))

    def _enqueue(self, items: Sequence[Item], budget_s: float, priority: Priority) -> _Request[Result]:
        now = time.monotonic()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request: _Request[Result] = _Request(future, [None] * len(items), len(items), now + budget_s, priority, now)
        with self._lock:
            if self._death is not None:
                raise StageUnavailable(self._death.message)
            if len(items) > self._config.max_waiting_items:
                raise TooLarge(f"{self._name} takes {self._config.max_waiting_items} items at a time, not {len(items)}")
            if self._num_waiting + len(items) > self._config.max_waiting_items:
                self._dropped.add("overloaded", len(items))
                raise Overloaded(f"{self._name} has {self._num_waiting} items waiting; try again later")
            self._num_waiting += len(items)
            self._open.add(request)
            for index, item in enumerate(items):
                self._raw[priority].append(_Entry(item, request, index, next(self._sequence)))
            self._arrived.notify()
        return request

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except StageUnavailable as error:
            self._die(error)
        except BaseException as error:
            # A thread that ended silently would leave its callers waiting.
            logger.exception("%s: a batching thread died", self._name)
            self._die(EngineDead(f"{self._name}: the engine stopped working ({type(error).__name__})"))

    def _prepare_loop(self) -> None:
        while True:
            with self._lock:
                while not any(self._raw.values()) and self._death is None:
                    self._prepared_streak = 0
                    self._arrived.wait()
                if self._death is not None:
                    return
                arrived = self._next_raw()
            alive = [entry for entry in arrived if not self._is_gone(entry)]
            self._forget(len(arrived) - len(alive))
            taken = self._prepare(alive)
            with self._lock:
                for entry in taken:
                    bisect.insort(self._ready[entry.request.priority], entry, key=self._order)
                if taken:
                    self._ready_changed.notify()

    def _next_raw(self) -> list[_Entry[Item, Prepared, Result]]:
        """Take what is tokenised next out of what has arrived. Called with the lock held."""
        priority = self._next_priority(self._raw, self._prepared_streak)
        self._prepared_streak = self._prepared_streak + 1 if priority == "interactive" else 0
        # A few bulk items at a time, so that a question never waits for the tokenising of a whole book.
        most = self._config.max_batch_rows if priority == "interactive" else BULK_ITEMS_PREPARED_AT_ONCE
        raw = self._raw[priority]
        return [raw.popleft() for _ in range(min(len(raw), most))]

    def _prepare(self, entries: list[_Entry[Item, Prepared, Result]]) -> list[_Entry[Item, Prepared, Result]]:
        """Tokenise; entries that can't be prepared are answered at once, the others are returned."""
        outcomes = _isolating(self._engine.prepare, [entry.item for entry in entries], self._name)
        taken: list[_Entry[Item, Prepared, Result]] = []
        refused: list[tuple[_Entry[Item, Prepared, Result], Result | StageError]] = []
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, StageError):
                refused.append((entry, outcome))
            else:
                entry.prepared, entry.length = outcome
                taken.append(entry)
        self._forget(len(refused))
        self._settle(refused)
        return taken

    def _work_loop(self) -> None:
        running: _Running[Item, Prepared, Result] | None = None
        while True:
            with self._lock:
                batch = self._next_batch(ahead=running is not None)
                while not batch and running is None and self._death is None:
                    self._ready_changed.wait()
                    batch = self._next_batch()
                if self._death is not None:
                    return
            started = self._start(batch) if batch else None
            if running is not None:
                self._finish(running)
            running = started
            if running is not None and self._launch is None:
                self._finish(running)
                running = None

    def _start(self, entries: list[_Entry[Item, Prepared, Result]]) -> _Running[Item, Prepared, Result]:
        """Launch a batch where the engine has a queue; elsewhere it runs when it is finished."""
        started_at = time.perf_counter()
        prepared = [entry.prepared for entry in entries]
        work: Callable[[Sequence[Any]], Sequence[Any]] = self._engine.run
        if self._launch is not None:
            work = _launched(self._launch, self._engine.run, prepared)
        return _Running(entries, started_at, lambda: _isolating(work, prepared, self._name))

    def _finish(self, running: _Running[Item, Prepared, Result]) -> None:
        results = running.collect()
        now = time.perf_counter()
        # A batch that was launched behind another one has not been computed before that one's end.
        compute_s = now - max(running.started_at, self._engine_free_at)
        self._engine_free_at = now
        entries = running.entries
        self._batches.add([entry.length for entry in entries], compute_s)
        for request in {entry.request for entry in entries}:
            request.compute_s += compute_s
            request.largest_batch = max(request.largest_batch, len(entries))
        self._settle(list(zip(entries, results, strict=True)))

    def _next_batch(self, ahead: bool = False) -> list[_Entry[Item, Prepared, Result]]:
        """Take the next batch out of the ready items; empty when there is none. Called with the lock held.

        A batch taken `ahead`, while another one runs, loses those who come before that one's end. So it is taken only
        where it leaves somebody behind, who would not have fitted in; and it never is one of bulk items, which could
        not be overtaken any more.
        """
        for priority, entries in self._ready.items():
            alive = [entry for entry in entries if not self._is_gone(entry)]
            self._num_waiting -= len(entries) - len(alive)
            self._ready[priority] = alive
        priority = self._next_priority(self._ready, self._interactive_streak)
        entries = self._ready[priority]
        if not entries and not ahead:
            self._interactive_streak = 0
        if not entries or (ahead and priority == "bulk"):
            return []
        lo, hi = self._cut(entries)
        if ahead and hi - lo == len(entries):
            return []
        self._interactive_streak = self._interactive_streak + 1 if priority == "interactive" else 0
        batch = entries[lo:hi]
        del entries[lo:hi]
        self._num_waiting -= len(batch)
        return batch

    def _cut(self, entries: Sequence[_Entry[Item, Prepared, Result]]) -> tuple[int, int]:
        lengths = [entry.length for entry in entries]
        if not self._padding_cost:
            return 0, cut_packed(lengths, self._config)
        anchor = min(range(len(entries)), key=lambda i: entries[i].sequence)
        return cut_batch(lengths, anchor, self._config, self._padding_cost)

    def _next_priority(self, waiting: Mapping[Priority, Sized], interactive_streak: int) -> Priority:
        turn_of_bulk = interactive_streak >= self._config.interactive_batches_per_bulk
        return "interactive" if waiting["interactive"] and not (turn_of_bulk and waiting["bulk"]) else "bulk"

    def _is_gone(self, entry: _Entry[Item, Prepared, Result]) -> bool:
        # Nobody waits for an expired item either: its caller's own timer has run out with the same budget.
        if time.monotonic() >= entry.request.expires_at:
            self._dropped.add("expired")
            return True
        if entry.request.abandoned:
            self._dropped.add("cancelled")
            return True
        return False

    def _forget(self, count: int) -> None:
        with self._lock:
            self._num_waiting -= count

    def _settle(self, answered: list[tuple[_Entry[Item, Prepared, Result], Result | StageError]]) -> None:
        done = [entry.request for entry, result in answered if entry.request.settle(entry.index, result)]
        if done:
            _on_loop(done[0].future, lambda: _wake(done, None))

    def _die(self, error: StageUnavailable) -> None:
        with self._lock:
            if self._death is not None:
                return
            self._death = error
            waiting = list(self._open)
            self._arrived.notify_all()
            self._ready_changed.notify_all()
        if waiting:
            _on_loop(waiting[0].future, lambda: _wake(waiting, error))


def raise_or_return(result: Result | StageError) -> Result:
    """The result of one item of `MicroBatcher.submit`, or its error raised."""
    if isinstance(result, StageError):
        raise result
    return result


def _on_loop(future: asyncio.Future[None], callback: Callable[[], None]) -> None:
    try:
        future.get_loop().call_soon_threadsafe(callback)
    except RuntimeError:
        logger.debug("the event loop is closed; nobody is waiting any more")


def _wake(requests: Sequence[_Request[Any]], error: StageUnavailable | None) -> None:
    for request in requests:
        if request.future.done():
            continue
        if error is None:
            request.future.set_result(None)
        else:
            request.future.set_exception(type(error)(error.message))


def _launched(
    launch: Callable[[Sequence[Any]], Callable[[], Sequence[Any]]],
    run: Callable[[Sequence[Any]], Sequence[Any]],
    batch: Sequence[Any],
) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Launch the batch; returns what `run` is to a batch, of which the first call waits for what was launched."""
    try:
        launched = iter([launch(batch)])
    except EngineDead:
        raise
    except Exception:
        # Whose fault it was shows when its halves are tried apart.
        logger.debug("a batch could not be launched", exc_info=True)
        return run

    def work(part: Sequence[Any]) -> Sequence[Any]:
        wait = next(launched, None)
        return run(part) if wait is None else wait()

    return work


def _isolating(
    work: Callable[[Sequence[Any]], Sequence[Any]], batch: Sequence[Any], name: str
) -> list[Any | StageError]:
    """`work(batch)`; when it raises, the halves are tried apart until each item that can't be worked fails alone."""
    if not batch:
        return []
    try:
        results = list(work(batch))
    except EngineDead:
        raise
    except Exception as error:
        # Whatever the engine raises belongs to one item, found by halving.
        if len(batch) > 1:
            middle = len(batch) // 2
            return [*_isolating(work, batch[:middle], name), *_isolating(work, batch[middle:], name)]
        if isinstance(error, StageError):
            return [error]
        logger.exception("%s: the engine failed on one item", name)
        return [EngineFailed(f"{name}: the engine could not process this item ({type(error).__name__})")]
    if len(results) != len(batch):
        raise EngineDead(f"{name}: the engine returned {len(results)} results for {len(batch)} items")
    return results
