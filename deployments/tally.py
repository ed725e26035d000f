"""What a process counts while it works: plain additions, which telemetry's metrics are exported from once a second.

A tally has one writer, an event loop or a thread; `read` may be called from another thread and sees sums that are at
most one addition apart from each other.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from types import TracebackType
from typing import Literal

from deployments import telemetry
from deployments.contracts import Stage, StageTiming, Usage
from deployments.errors import StageError
from deployments.telemetry import BOUNDS_S, LE_LABELS, LatencyMetrics, Reading

DropReason = Literal["cancelled", "expired", "overloaded", "failed", "unavailable"]
RequestOutcome = Literal["ok", "degraded", "shed", "deadline", "client_error", "server_error", "disconnected"]


class Latency:
    """How often something happened and how long it took: an exact count and sum, and the counts by bucket."""

    __slots__ = ("_buckets", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._buckets = [0] * len(LE_LABELS)

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds
        self._buckets[bisect_left(BOUNDS_S, seconds)] += 1

    def read(self, metrics: LatencyMetrics, labels: tuple[str, ...]) -> Iterator[Reading]:
        yield metrics.count, labels, self.count
        yield metrics.seconds, labels, self.seconds
        for le, count in zip(LE_LABELS, accumulate(self._buckets), strict=True):
            yield metrics.bucket, (*labels, le), count


class _StageCalls:
    """The calls of one branch of one stage."""

    __slots__ = ("batch_sizes", "batch_wait_s", "compute_s", "queue_s", "total")

    def __init__(self) -> None:
        self.total = Latency()
        self.queue_s = 0.0
        self.batch_wait_s = 0.0
        self.compute_s = 0.0
        self.batch_sizes = 0

    def read(self, labels: tuple[str, ...]) -> Iterator[Reading]:
        yield from self.total.read(telemetry.STAGE, labels)
        yield telemetry.STAGE_QUEUE, labels, self.queue_s
        yield telemetry.STAGE_BATCH_WAIT, labels, self.batch_wait_s
        yield telemetry.STAGE_COMPUTE, labels, self.compute_s
        yield telemetry.STAGE_BATCH_SIZE, labels, self.batch_sizes


class LaneTally:
    """What the lane did: its stages' calls, the same that answers tell of as timings, and what generators wrote."""

    def __init__(self) -> None:
        self._stages: defaultdict[tuple[str, str], _StageCalls] = defaultdict(_StageCalls)
        self._degraded: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._ttft: defaultdict[str, Latency] = defaultdict(Latency)
        self._inter_token: defaultdict[str, Latency] = defaultdict(Latency)
        self._tokens: defaultdict[tuple[str, str], int] = defaultdict(int)

    def stage(self, stage: Stage, branch: str, total_s: float, queue_s: float, timing: StageTiming) -> None:
        """A call of a stage has ended."""
        calls = self._stages[stage, branch]
        calls.total.add(total_s)
        calls.queue_s += queue_s
        calls.batch_wait_s += timing.batch_wait_s
        calls.compute_s += timing.compute_s
        calls.batch_sizes += timing.batch_size

    def degraded(self, reasons: Mapping[Stage, str]) -> None:
        """A request was served without these stages, each for the `reason` of its error."""
        for without in reasons.items():
            self._degraded[without] += 1

    def written(self, generator: str, times_s: list[float], usage: Usage) -> None:
        """A generator has ended: when each piece of its text came, counted from the question, and its tokens."""
        if times_s:
            self._ttft[generator].add(times_s[0])
            gaps = self._inter_token[generator]
            for earlier, later in pairwise(times_s):
                gaps.add(later - earlier)
        self._tokens[generator, "in"] += usage.prompt_tokens
        self._tokens[generator, "out"] += usage.completion_tokens

    def read(self) -> Iterator[Reading]:
        """Everything since the start."""
        for labels, calls in list(self._stages.items()):
            yield from calls.read(labels)
        for without, count in list(self._degraded.items()):
            yield telemetry.DEGRADED, without, count
        for generator, latency in list(self._ttft.items()):
            yield from latency.read(telemetry.TTFT, (generator,))
        for generator, latency in list(self._inter_token.items()):
            yield from latency.read(telemetry.INTER_TOKEN, (generator,))
        for written, count in list(self._tokens.items()):
            yield telemetry.TOKENS, written, count


class SilentTally(LaneTally):
    """Stands where a tally is asked for and nobody would read it: counts nothing."""

    def stage(self, stage: Stage, branch: str, total_s: float, queue_s: float, timing: StageTiming) -> None:
        """Forget the call."""

    def degraded(self, reasons: Mapping[Stage, str]) -> None:
        """Forget the request."""

    def written(self, generator: str, times_s: list[float], usage: Usage) -> None:
        """Forget the answer."""


class RequestTally:
    """What became of the requests of each endpoint."""

    def __init__(self) -> None:
        self._latency: defaultdict[str, Latency] = defaultdict(Latency)
        self._outcomes: defaultdict[tuple[str, str], int] = defaultdict(int)

    def add(self, endpoint: str, outcome: RequestOutcome, seconds: float) -> None:
        self._latency[endpoint].add(seconds)
        self._outcomes[endpoint, outcome] += 1

    def read(self) -> Iterator[Reading]:
        """Everything since the start."""
        for endpoint, latency in list(self._latency.items()):
            yield from latency.read(telemetry.REQUEST, (endpoint,))
        for labels, count in list(self._outcomes.items()):
            yield telemetry.REQUESTS, labels, count


class DropTally:
    """Items that a stage did not answer with a result, by reason. Any thread may add."""

    def __init__(self, stage: str) -> None:
        self._lock = threading.Lock()
        self._stage = stage
        self._dropped: defaultdict[str, int] = defaultdict(int)

    def add(self, reason: DropReason, count: int = 1) -> None:
        if count:
            with self._lock:
                self._dropped[reason] += count

    def add_failure(self, error: StageError | None) -> None:
        """An item whose stage broke or is not there. What it refuses or is late with, a stage counts itself."""
        if error is not None and (error.reason == "failed" or error.reason == "unavailable"):
            self.add(error.reason)

    def read(self) -> Iterator[Reading]:
        """Everything since the start."""
        for reason, count in list(self._dropped.items()):
            yield telemetry.DROPPED, (self._stage, reason), count


class BatchTally:
    """What one engine ran, to which a token of padding costs `padding_cost` times what a real one does."""

    def __init__(self, stage: str, padding_cost: float = 1.0) -> None:
        self._labels = (stage,)
        self._padding_cost = padding_cost
        self._batches = 0
        self._rows = 0
        self._tokens = 0
        self._padded_tokens = 0
        self.busy_s = 0.0

    def add(self, lengths: list[int], seconds: float) -> None:
        """A batch whose rows have these lengths in tokens took so long."""
        self._batches += 1
        self._rows += len(lengths)
        tokens = sum(lengths)
        self._tokens += tokens
        self._padded_tokens += tokens + round(self._padding_cost * (len(lengths) * max(lengths) - tokens))
        self.busy_s += seconds

    def read(self) -> Iterator[Reading]:
        """Everything since the start."""
        yield telemetry.BATCH_COUNT, self._labels, self._batches
        yield telemetry.BATCH_ROWS, self._labels, self._rows
        yield telemetry.BATCH_TOKENS, self._labels, self._tokens
        yield telemetry.BATCH_PADDED, self._labels, self._padded_tokens
        yield telemetry.REPLICA_BUSY, self._labels, self.busy_s


class BusyClock:
    """Seconds in which at least one piece of work was in hand. Enter it for each piece, all on one event loop."""

    def __init__(self, stage: str) -> None:
        self._labels = (stage,)
        self._in_hand = 0
        self._since_s = 0.0
        self._past_s = 0.0

    def __enter__(self) -> None:
        if self._in_hand == 0:
            self._since_s = time.perf_counter()
        self._in_hand += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._in_hand -= 1
        if self._in_hand == 0:
            self._past_s += time.perf_counter() - self._since_s

    def read(self) -> Iterator[Reading]:
        """The sum since the start, what is in hand included."""
        past_s, since_s = self._past_s, self._since_s
        present_s = time.perf_counter() - since_s if self._in_hand else 0.0
        yield telemetry.REPLICA_BUSY, self._labels, past_s + present_s
