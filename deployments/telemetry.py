"""Every metric that raglane exports: names, labels, units and buckets. Knows nothing of Ray, which exports them.

Ray puts `ray_` in front of a name and `_total` behind a counter's, and Serve adds the labels `deployment`, `replica`
and `application`. Times are in seconds.

A latency is three counters rather than one histogram: Ray 2.60 rebuilds a histogram's sum from the middles of its
buckets, so that its mean is off by up to half a bucket, and pays for every single observation. `_count` and
`_seconds` are exact; `_seconds_bucket` counts, for each bound `le`, what took no longer, as a histogram's buckets do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "ray_"
COUNTER_SUFFIX = "_total"

# Each bound at most a quarter above the one before, from 1 ms to 60 s: a percentile read from them is off by less than
# that. The four below a millisecond are for the stages that run in the ingress; the round ones are what targets are set
# at, so that the share of requests within a target is exact.
_GEOMETRIC = tuple(float(f"{0.001 * 1.25**step:.3g}") for step in range(50))
_LOCAL = (0.0001, 0.0002, 0.0004, 0.0007)
_ROUND = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
BOUNDS_S = tuple(sorted({*_LOCAL, *_GEOMETRIC, *_ROUND} - {bound for bound in _GEOMETRIC if bound > 60.0}))
LE_LABELS = (*(f"{bound:g}" for bound in BOUNDS_S), "+Inf")

INGRESS = "ingress"
INDEX = "index"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric under its name in the code; `labels` are its own, without those that Ray and Serve add."""

    name: str
    labels: tuple[str, ...]
    description: str
    kind: Literal["counter", "gauge"] = "counter"

    @property
    def exported(self) -> str:
        """The name under which Prometheus sees it."""
        return PREFIX + self.name + (COUNTER_SUFFIX if self.kind == "counter" else "")


@dataclass(frozen=True, slots=True)
class LatencyMetrics:
    """The three counters of one latency."""

    count: Metric
    seconds: Metric
    bucket: Metric

    @classmethod
    def named(cls, name: str, labels: tuple[str, ...], what: str) -> LatencyMetrics:
        return cls(
            Metric(f"{name}_count", labels, f"How often: {what}."),
            Metric(f"{name}_seconds", labels, f"Seconds in all: {what}."),
            Metric(f"{name}_seconds_bucket", (*labels, "le"), f"How often in at most `le` seconds: {what}."),
        )

    def all(self) -> tuple[Metric, ...]:
        return (self.count, self.seconds, self.bucket)


_CALL = ("stage", "branch")

STAGE = LatencyMetrics.named("raglane_stage", _CALL, "calls of a stage of the lane, as the lane waited for them")
STAGE_QUEUE = Metric("raglane_stage_queue_seconds", _CALL, "Seconds of those calls in hops, routing and transport.")
STAGE_BATCH_WAIT = Metric(
    "raglane_stage_batch_wait_seconds", _CALL, "Seconds of those calls spent waiting for a batch."
)
STAGE_COMPUTE = Metric("raglane_stage_compute_seconds", _CALL, "Seconds of those calls spent in their batches.")
STAGE_BATCH_SIZE = Metric("raglane_stage_batch_size_sum", _CALL, "Rows of the largest batch of each call, added up.")

REQUEST = LatencyMetrics.named("raglane_request", ("endpoint",), "requests, from their head to the last byte out")
REQUESTS = Metric("raglane_requests", ("endpoint", "outcome"), "Requests by what became of them.")
DEGRADED = Metric("raglane_degraded", ("stage", "reason"), "Answers and searches that did without a stage, and why.")
TTFT = LatencyMetrics.named("raglane_ttft", ("generator",), "answers, from the question to their first words")
INTER_TOKEN = LatencyMetrics.named("raglane_inter_token", ("generator",), "pieces of answers after the piece before")
TOKENS = Metric("raglane_tokens", ("generator", "direction"), "Tokens that generators read (in) and wrote (out).")

CACHE_LOOKUPS = Metric("raglane_cache_lookups", ("cache", "result"), "Lookups in a cache: hit, or miss.")
CACHE_BYTES = Metric("raglane_cache_bytes", ("cache",), "What a cache holds, in bytes.", "gauge")
INDEX_COVERAGE = Metric(
    "raglane_index_coverage", ("collection", "index"), "Share of a collection's chunks that an index covers.", "gauge"
)

REPLICA_SECONDS = Metric("raglane_replica_seconds", ("stage",), "Seconds that a replica has lived.")
REPLICA_STARTED = Metric(
    "raglane_replica_start_time_seconds",
    ("stage",),
    "When a replica began, in seconds since 1970: a counter, because Ray forgets the gauges of the dead.",
)
REPLICA_BUSY = Metric("raglane_replica_busy_seconds", ("stage",), "Seconds in which a replica had work in hand.")
REPLICA_CPU = Metric("raglane_replica_cpu_seconds", ("stage",), "CPU seconds of a replica's process.")
BATCH_COUNT = Metric("raglane_batch_count", ("stage",), "Batches that an engine ran.")
BATCH_ROWS = Metric("raglane_batch_rows", ("stage",), "Rows of those batches.")
BATCH_TOKENS = Metric("raglane_batch_tokens", ("stage",), "Tokens of those rows, each rounded up as the engine does.")
BATCH_PADDED = Metric("raglane_batch_padded_tokens", ("stage",), "Tokens of those batches with every row padded.")
DROPPED = Metric("raglane_dropped", ("stage", "reason"), "Items that a stage did not answer with a result.")
WAITING = Metric("raglane_waiting", ("stage",), "Items that wait for a call or for a batch.", "gauge")

LATENCIES = (STAGE, REQUEST, TTFT, INTER_TOKEN)
METRICS: tuple[Metric, ...] = (
    *(metric for latency in LATENCIES for metric in latency.all()),
    STAGE_QUEUE,
    STAGE_BATCH_WAIT,
    STAGE_COMPUTE,
    STAGE_BATCH_SIZE,
    REQUESTS,
    DEGRADED,
    TOKENS,
    CACHE_LOOKUPS,
    CACHE_BYTES,
    INDEX_COVERAGE,
    REPLICA_SECONDS,
    REPLICA_STARTED,
    REPLICA_BUSY,
    REPLICA_CPU,
    BATCH_COUNT,
    BATCH_ROWS,
    BATCH_TOKENS,
    BATCH_PADDED,
    DROPPED,
    WAITING,
)

# One value of one metric: its own labels' values in their order, and the sum since the start or, of a gauge, the value.
Reading = tuple[Metric, tuple[str, ...], float]


def metric_names() -> dict[str, tuple[str, ...]]:
    """The exported names, each with its own labels."""
    return {metric.exported: metric.labels for metric in METRICS}
