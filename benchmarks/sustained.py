"""Whether a server keeps up with an open load. Pure: no clock, no input, no output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.experiment import Criterion
from benchmarks.goodput import REQUIRED_SHARE, Goodput
from benchmarks.measure import Window, started_within
from benchmarks.records import Sample

# Fewer answers than this say nothing about a trend: each third of the window needs a few.
MIN_ANSWERS_FOR_TREND = 12
# Of the standard errors of the slope: about 99 % one-sided.
SIGNIFICANT_T = 2.33

# A load that is still running is given up on only where it is far beyond what any load could recover from.
CLEARLY = Criterion(answered_share=0.5, error_share=0.5, slope=0.25, growth=1.5)
MIN_REQUESTS_TO_GIVE_UP = 20
# A server that paused for a moment early on may well catch up.
MIN_WINDOW_SHARE_TO_GIVE_UP = 0.4


@dataclass(frozen=True, slots=True)
class Trend:
    """How latency develops: seconds of latency per second of load, and its medians in the first and the last third.

    An overloaded server whose queue takes in a share s more than it can answer makes each request wait longer by
    about s seconds per second. `significant` is whether the least-squares slope is above 0 beyond its standard error;
    neighbouring latencies hang together, so that it is necessary for a growing queue, but not sufficient.
    """

    slope: float
    significant: bool
    first_s: float
    last_s: float

    def exceeds(self, criterion: Criterion) -> bool:
        """Whether the queue grows by the criterion's measure."""
        return self.significant and self.slope > criterion.slope and self.last_s > criterion.growth * self.first_s


def find_shortcomings(
    samples: Sequence[Sample], window: Window, criterion: Criterion, num_unanswered: int = 0
) -> list[str]:
    """Return what the window lacks to count as sustained, in words; nothing where it is.

    Requests count as offered when they were meant to start in the window, and as answered when they were answered with
    every stage within it, whenever they began: a server that leaves out a stage because it has too much to do does not
    keep up. `num_unanswered` are those offered ones that have no sample yet.
    """
    started = started_within(samples, window)
    answers = sum(sample.is_whole and window.start_s <= sample.end_s <= window.end_s for sample in samples)
    errors = Counter(sample.error_kind for sample in started if sample.error_kind is not None)
    offered = len(started) + num_unanswered
    if not offered:
        return ["no request was offered"]
    found = []
    if answers < criterion.answered_share * offered:
        found.append(f"{answers} of {offered} requests answered in {window.length_s:.1f} s")
    degraded = [sample.degraded for sample in started if sample.error_kind is None and sample.degraded]
    if errors.total() + len(degraded) > criterion.error_share * offered:
        if errors:
            found.append(f"{errors.total() / offered:.1%} of the requests failed ({_counted(errors)})")
        if degraded:
            stages = Counter(chain.from_iterable(degraded))
            found.append(f"{len(degraded) / offered:.1%} of the answers did without a stage ({_counted(stages)})")
    trend = latency_trend([sample for sample in started if sample.error_kind is None])
    if trend is not None and trend.exceeds(criterion):
        found.append(
            f"the queue grew: latency rose by {trend.slope:.3g} s per second, "
            f"from {trend.first_s:.3g} s to {trend.last_s:.3g} s"
        )
    return found


def _counted(counts: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def find_broken_promises(goodput: Goodput | None) -> list[str]:
    """Return which limits of the SLO were not kept, in words; nothing where all were or there is no SLO."""
    if goodput is None or goodput.met:
        return []
    broken = [f"{name} kept by {share:.1%}" for name, share in goodput.within.items() if share < REQUIRED_SHARE]
    return [f"the SLO was missed: {', '.join(broken) or 'too few whole answers'}"]


def find_overload(
    samples: Sequence[Sample], num_in_flight: int, *, warmup_s: float, elapsed_s: float, duration_s: float
) -> str | None:
    """Return why a load that still runs, `elapsed_s` seconds old, is clearly too much; None as long as it is not."""
    window = Window(warmup_s, elapsed_s)
    if any(sample.error_kind == "client_limit" for sample in samples):
        return "as many requests were in flight as `max_in_flight` allows"
    num_offered = len(started_within(samples, window)) + num_in_flight
    if window.length_s < MIN_WINDOW_SHARE_TO_GIVE_UP * duration_s or num_offered < MIN_REQUESTS_TO_GIVE_UP:
        return None
    return "; ".join(find_shortcomings(samples, window, CLEARLY, num_in_flight)) or None


def latency_trend(succeeded: Sequence[Sample]) -> Trend | None:
    """Fit a straight line through latency by intended start; None where there are too few answers for one.

    The thirds are those of the time between the first and the last of these requests rather than of the window: while
    a load still runs, what was sent last has no answer yet.
    """
    if len(succeeded) < MIN_ANSWERS_FOR_TREND:
        return None
    times = np.array([sample.intended_start_s for sample in succeeded])
    latencies = np.array([sample.latency_s for sample in succeeded])
    begin_s, third_s = times.min(), np.ptp(times) / 3
    if third_s == 0:
        return None
    first, last = latencies[times <= begin_s + third_s], latencies[times >= begin_s + 2 * third_s]
    centred = times - times.mean()
    spread = float(centred @ centred)
    slope = float(centred @ latencies) / spread
    residuals = latencies - latencies.mean() - slope * centred
    standard_error = math.sqrt(float(residuals @ residuals) / (times.size - 2) / spread)
    return Trend(slope, slope > SIGNIFICANT_T * standard_error, float(np.median(first)), float(np.median(last)))
