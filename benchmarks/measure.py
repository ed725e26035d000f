"""From the samples of a load to its numbers. Pure: no clock, no input, no output."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.experiment import Slo
from benchmarks.goodput import Goodput, measure_goodput
from benchmarks.records import Sample, StageTiming


@dataclass(frozen=True, slots=True)
class Window:
    """The measured part of a load, in seconds since its start; what lies before is warm-up."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return max(0.0, self.end_s - self.start_s)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values in seconds. A percentile is the smallest value that at least that share of the values do not exceed."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One stage over all successful requests. Shares are of the stage's total time, sums over sums."""

    stage: str
    total: Distribution
    mean_queue_s: float
    mean_batch_wait_s: float
    mean_compute_s: float
    queue_share: float
    batch_wait_share: float
    compute_share: float
    mean_batch_size: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The requests that were meant to start in the window.

    `latency`, `ttft` and `inter_token` are those of the successful ones, `start_delay` is of all: how late the client
    itself sent them. `requests_per_s` alone counts by end: successes that were answered within the window, whenever
    they began, for a server that lags behind an open load must not be credited with answers it gave afterwards. Answers
    that did without a stage are successes; `degraded` counts them, each for every stage that it lacks.
    """

    num_requests: int
    num_succeeded: int
    num_failed: int
    shed: int
    timeouts: int
    requests_per_s: float
    offered_per_s: float
    errors: dict[str, int]
    error_examples: dict[str, str]
    statuses: dict[str, int]
    degraded: dict[str, int]
    latency: Distribution | None
    start_delay: Distribution | None
    ttft: Distribution | None
    inter_token: Distribution | None
    goodput: Goodput | None


def measured_window(samples: Sequence[Sample], *, warmup_s: float, horizon_s: float, max_requests: int) -> Window:
    """Return the window from the end of the warm-up to the horizon.

    A load that `max_requests` ended early is measured to its last answer instead.
    """
    end_s = horizon_s
    if len(samples) >= max_requests:
        end_s = min(horizon_s, max(sample.end_s for sample in samples))
    return Window(warmup_s, end_s)


def distribution(values: Iterable[float]) -> Distribution | None:
    """Describe the values; None where there are none."""
    array = np.fromiter(values, dtype=np.float64)
    if array.size == 0:
        return None
    p50, p90, p99 = np.percentile(array, (50, 90, 99), method="inverted_cdf").tolist()
    return Distribution(array.size, float(array.mean()), p50, p90, p99, float(array.max()))


def summarise(samples: Sequence[Sample], window: Window, slo: Slo | None = None, *, stream: bool = False) -> Summary:
    """Reduce a load's samples, warm-up and all, to the numbers of its window; goodput only where there is an SLO."""
    measured = started_within(samples, window)
    succeeded = [sample for sample in measured if sample.error_kind is None]
    answered = [
        sample for sample in samples if sample.error_kind is None and window.start_s <= sample.end_s <= window.end_s
    ]
    examples: dict[str, str] = {}
    for sample in measured:
        if sample.error_kind is not None:
            examples.setdefault(sample.error_kind, sample.error)
    errors = Counter(sample.error_kind for sample in measured if sample.error_kind is not None)
    return Summary(
        num_requests=len(measured),
        num_succeeded=len(succeeded),
        num_failed=len(measured) - len(succeeded),
        shed=errors["shed"],
        timeouts=errors["timeout"] + errors["deadline"],
        requests_per_s=_rate(len(answered), window),
        offered_per_s=_rate(len(measured), window),
        errors={str(kind): count for kind, count in errors.items()},
        error_examples=examples,
        statuses=dict(Counter(str(sample.status) for sample in measured if sample.status is not None)),
        degraded=dict(Counter(stage for sample in succeeded for stage in sample.degraded)),
        latency=distribution(sample.latency_s for sample in succeeded),
        start_delay=distribution(sample.start_s - sample.intended_start_s for sample in measured),
        ttft=distribution(sample.ttft_s for sample in succeeded if sample.ttft_s is not None),
        inter_token=distribution(gap for sample in succeeded for gap in sample.inter_token_s),
        goodput=None if slo is None else measure_goodput(measured, answered, window.length_s, slo, stream=stream),
    )


def stage_table(samples: Sequence[Sample], window: Window) -> list[StageSummary]:
    """Summarise each stage that successful requests of the window report, in the order of first appearance."""
    by_stage: defaultdict[str, list[StageTiming]] = defaultdict(list)
    for sample in started_within(samples, window):
        if sample.error_kind is None:
            for timing in sample.timings:
                by_stage[timing.stage].append(timing)
    return [_summarise_stage(stage, timings) for stage, timings in by_stage.items()]


def _summarise_stage(stage: str, timings: list[StageTiming]) -> StageSummary:
    total = distribution(timing.total_s for timing in timings)
    assert total is not None, "a stage is in the table because it has timings"
    means = np.array([(t.queue_s, t.batch_wait_s, t.compute_s, t.batch_size) for t in timings]).mean(axis=0)
    queue_s, batch_wait_s, compute_s, batch_size = means.tolist()

    def share(mean_s: float) -> float:
        return mean_s / total.mean_s if total.mean_s > 0 else 0.0

    return StageSummary(
        stage=stage,
        total=total,
        mean_queue_s=queue_s,
        mean_batch_wait_s=batch_wait_s,
        mean_compute_s=compute_s,
        queue_share=share(queue_s),
        batch_wait_share=share(batch_wait_s),
        compute_share=share(compute_s),
        mean_batch_size=batch_size,
    )


def started_within(samples: Iterable[Sample], window: Window) -> list[Sample]:
    """Return the samples of the requests that were meant to start in the window, in their order."""
    return [sample for sample in samples if window.start_s <= sample.intended_start_s < window.end_s]


def _rate(count: int, window: Window) -> float:
    return count / window.length_s if window.length_s > 0 else 0.0
