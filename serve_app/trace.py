"""Deadline and Trace: how long one request may take, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from deployments.contracts import Stage, StageTiming, Timed
from deployments.errors import DeadlineExceeded
from deployments.tally import LaneTally

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment `at`, on a monotonic clock of this process, after which a request's answer is of no use."""

    at: float
    timeout_s: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """A deadline `timeout_s` seconds from now."""
        return cls(clock() + timeout_s, timeout_s, clock)

    def remaining_s(self) -> float:
        """Seconds left; raises DeadlineExceeded when there are none."""
        remaining = self.at - self.clock()
        if remaining <= 0:
            raise DeadlineExceeded(
                f"the request took longer than its {self.timeout_s:g} s; raise timeout_s, or ask again under less load"
            )
        return remaining


@dataclass(frozen=True, slots=True)
class StageRow:
    """One call of a stage for one request, in seconds: `start_s` after the request's begin, `total_s` as the lane
    waited for it, and its split. `branch` tells apart the calls that one stage got.

    `queue_s` is what neither batching nor computing explains: waiting for a hop, routing, transport.
    """

    stage: Stage
    branch: str
    start_s: float
    total_s: float
    queue_s: float
    batch_wait_s: float
    compute_s: float
    batch_size: int


@dataclass(slots=True)
class Trace:
    """The calls of one request's stages in the order in which they ended; branches run side by side.

    `tally` counts every row as well, so that metrics and answers tell of the same calls. `degraded` names the stages
    that the request had to do without.
    """

    tally: LaneTally = field(default_factory=LaneTally)
    started_at: float = field(default_factory=time.perf_counter)
    rows: list[StageRow] = field(default_factory=list)
    degraded: tuple[Stage, ...] = ()

    def add(self, stage: Stage, total_s: float, timing: StageTiming, branch: str = "") -> None:
        """Record a call that has just ended after `total_s` seconds, and that was timed from the inside elsewhere."""
        # Clocks of two processes tick apart by a hair: a negative queue would only ever be that.
        queue_s = max(0.0, total_s - timing.batch_wait_s - timing.compute_s)
        start_s = max(0.0, self.elapsed_s() - total_s)
        row = StageRow(
            stage, branch, start_s, total_s, queue_s, timing.batch_wait_s, timing.compute_s, timing.batch_size
        )
        self.rows.append(row)
        self.tally.stage(stage, branch, total_s, queue_s, timing)

    @contextmanager
    def local(self, stage: Stage, branch: str = "") -> Iterator[None]:
        """Record a stage that runs right here: all of its time is compute."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed_s = time.perf_counter() - started
            self.add(stage, elapsed_s, StageTiming(compute_s=elapsed_s), branch)

    async def timed(self, stage: Stage, work: Awaitable[Timed[Value]], branch: str = "") -> Value:
        """The value of a call to another process, which is recorded unless it fails."""
        started = time.perf_counter()
        answer = await work
        self.add(stage, time.perf_counter() - started, answer.timing, branch)
        return answer.value

    def left_out(self, reasons: Mapping[Stage, str]) -> None:
        """The request is served without these stages, each for the `reason` of its error."""
        self.degraded = tuple(reasons)
        self.tally.degraded(reasons)

    def elapsed_s(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self.started_at

    def server_timing(self) -> str:
        """The rows as the value of a `Server-Timing` header, in milliseconds (W3C Server Timing)."""
        return ", ".join(_entry(row) for row in self.rows)


def _entry(row: StageRow) -> str:
    description = f';desc="{row.branch}"' if row.branch else ""
    return f"{row.stage}{description};dur={row.total_s * 1000:.2f}"
