"""Goodput: how many requests are answered well enough, rather than how many are answered. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.experiment import Slo
from benchmarks.records import Sample

# A limit is met when this share of the requests stays within it: the limit holds at the 99th percentile.
REQUIRED_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class Goodput:
    """How a load did by an SLO.

    A request is good when it was answered with every stage, its latency is at most `request_p99_s`, and, of a stream,
    its time to the first token at most `ttft_s` and the mean of its times between tokens at most `itl_s`. A limit that
    is null or does not apply is kept by every whole answer. A stream without a `token` event has its latency as its
    time to the first token; one with a single token has no time between tokens.

    `good` and `good_share` are of the requests that were meant to start in the window, the failed ones among them.
    `good_per_s` counts as `requests_per_s` does: good requests that were answered within the window, whenever they
    began, by the window's length. `within` is, for each limit that applies, the share of the window's requests that
    kept it; one that failed or did without a stage keeps none, or shedding would help. `met` is whether every one of
    these shares, and that of the whole answers, is at least 0.99, that is, whether each limit holds at the 99th
    percentile; of no requests at all it is false.
    """

    slo: dict[str, float | None]
    good: int
    good_share: float
    good_per_s: float
    within: dict[str, float]
    met: bool


def measure_goodput(
    started: Sequence[Sample], answered: Sequence[Sample], length_s: float, slo: Slo, *, stream: bool
) -> Goodput:
    """Measure a window of `length_s` seconds: the requests `started` within it, the successes `answered` within it."""
    limits = _limits(slo, stream=stream)
    whole = [sample for sample in started if sample.is_whole]
    good = sum(_is_good(sample, limits) for sample in whole)
    good_answers = sum(sample.is_whole and _is_good(sample, limits) for sample in answered)

    def share(count: int) -> float:
        return count / max(1, len(started))

    within = {name: share(sum(map(keeps, whole))) for name, keeps in limits.items()}
    return Goodput(
        slo=slo.model_dump(),
        good=good,
        good_share=share(good),
        good_per_s=good_answers / length_s if length_s > 0 else 0.0,
        within=within,
        met=min([share(len(whole)), *within.values()]) >= REQUIRED_SHARE,
    )


def _is_good(sample: Sample, limits: dict[str, Callable[[Sample], bool]]) -> bool:
    return all(keeps(sample) for keeps in limits.values())


def _limits(slo: Slo, *, stream: bool) -> dict[str, Callable[[Sample], bool]]:
    """Return, for each limit that applies, whether a successful request keeps it."""
    limits: dict[str, tuple[float | None, Callable[[Sample], float]]] = {
        "request_p99_s": (slo.request_p99_s, lambda sample: sample.latency_s)
    }
    if stream:
        limits["ttft_s"] = (slo.ttft_s, _time_to_first_token_s)
        limits["itl_s"] = (slo.itl_s, _mean_inter_token_s)
    return {name: _at_most(limit, time_s) for name, (limit, time_s) in limits.items() if limit is not None}


def _at_most(limit_s: float, time_s: Callable[[Sample], float]) -> Callable[[Sample], bool]:
    return lambda sample: time_s(sample) <= limit_s


def _time_to_first_token_s(sample: Sample) -> float:
    return sample.latency_s if sample.ttft_s is None else sample.ttft_s


def _mean_inter_token_s(sample: Sample) -> float:
    return float(np.mean(sample.inter_token_s)) if sample.inter_token_s else 0.0
