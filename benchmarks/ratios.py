"""From the runs of several systems to how they compare. Pure: no clock, no input, no output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measure import Summary

MEASURES = ("requests_per_s", "mean_s", "p50_s", "p90_s", "p99_s")

# One value for each round, None where no request of it succeeded.
Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Ratio:
    """One system's measure divided by another's: of their medians, and of the single rounds the least and greatest."""

    of_medians: float
    least: float
    greatest: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the answers of two systems agree, over the queries that both were asked.

    `overlap` is the mean share of values that both hold, `same_order` the share of queries with equal answers.
    """

    num_queries: int
    overlap: float
    same_order: float


def measures_of(summary: Summary) -> dict[str, float | None]:
    """The numbers of one run by the names in MEASURES; latencies are in seconds."""
    measures: dict[str, float | None] = dict.fromkeys(MEASURES)
    measures["requests_per_s"] = summary.requests_per_s
    if latency := summary.latency:
        measures |= {"mean_s": latency.mean_s, "p50_s": latency.p50_s, "p90_s": latency.p90_s, "p99_s": latency.p99_s}
    return measures


def median_of(values: Values) -> float | None:
    """The median of the rounds; None where one of them has no value, for it may be the slowest that is missing."""
    known = [value for value in values if value is not None]
    return median(known) if known and len(known) == len(values) else None


def ratio(first: Values, other: Values) -> Ratio | None:
    """`first` ÷ `other`, round by round and of the medians; None where there is nothing to divide, or to divide by."""
    top, bottom = median_of(first), median_of(other)
    pairs = [(a, b) for a, b in zip(first, other, strict=True) if a is not None and b]
    if top is None or not bottom or len(pairs) < len(first):
        return None
    single = [a / b for a, b in pairs]
    return Ratio(top / bottom, min(single), max(single))


def agreement(first: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> Agreement:
    """Compare the answers to the same queries, each a list of values in its order. Two empty answers agree."""
    pairs = list(zip(first, other, strict=True))
    overlaps = [len(set(a) & set(b)) / max(len(set(a)), len(set(b)), 1) if a or b else 1.0 for a, b in pairs]
    equal = sum(list(a) == list(b) for a, b in pairs)
    return Agreement(len(pairs), sum(overlaps) / len(pairs), equal / len(pairs))


def ratios(systems: Mapping[str, Mapping[str, Values]]) -> dict[str, dict[str, Ratio | None]]:
    """For each system but the first, the first one's measures divided by its own."""
    (_, first), *others = systems.items()
    return {name: {measure: ratio(first[measure], values[measure]) for measure in MEASURES} for name, values in others}
