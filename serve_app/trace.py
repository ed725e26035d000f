"""Deadline and Trace: how long one request may take, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from deployments.contracts import Stage, StageTiming
from deployments.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment, on this process's monotonic clock, after which a request's answer is of no use."""

    at: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """A deadline `timeout_s` seconds from now."""
        return cls(time.monotonic() + timeout_s, timeout_s)

    def remaining_s(self) -> float:
        """Seconds left; raises DeadlineExceeded when there are none."""
        remaining = self.at - time.monotonic()
        if remaining <= 0:
            raise DeadlineExceeded(
                f"the request took longer than its {self.timeout_s:g} s; raise timeout_s, or ask again under less load"
            )
        return remaining


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of one request, in seconds: `total_s` as the lane waited for it, and its split.

    `queue_s` is what neither batching nor computing explains: waiting for a hop, routing, transport.
    """

    stage: Stage
    total_s: float
    queue_s: float
    batch_wait_s: float
    compute_s: float
    batch_size: int


@dataclass(slots=True)
class Trace:
    """The stages of one request in the order in which they ended."""

    started_at: float = field(default_factory=time.perf_counter)
    rows: list[StageRow] = field(default_factory=list)

    def add(self, stage: Stage, total_s: float, timing: StageTiming) -> None:
        """Record a stage that another process timed from the inside."""
        # Clocks of two processes tick apart by a hair: a negative queue would only ever be that.
        queue_s = max(0.0, total_s - timing.batch_wait_s - timing.compute_s)
        self.rows.append(StageRow(stage, total_s, queue_s, timing.batch_wait_s, timing.compute_s, timing.batch_size))

    @contextmanager
    def local(self, stage: Stage) -> Iterator[None]:
        """Record a stage that runs right here: all of its time is compute."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed_s = time.perf_counter() - started
            self.add(stage, elapsed_s, StageTiming(compute_s=elapsed_s))

    def elapsed_s(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self.started_at

    def server_timing(self) -> str:
        """The rows as the value of a `Server-Timing` header, in milliseconds (W3C Server Timing)."""
        return ", ".join(f"{row.stage};dur={row.total_s * 1000:.2f}" for row in self.rows)
