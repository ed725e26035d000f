"""Medians over the repeats of each load. Pure: no clock, no input, no output."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from benchmarks.experiment import SingleLoad
from benchmarks.load_run import LoadRun
from benchmarks.measure import Distribution, StageSummary


@dataclass(frozen=True, slots=True)
class MedianTimes:
    """The median over the repeats of each of their mean and percentiles, in seconds."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class MedianStage:
    """The median over the repeats of each of a stage's measures."""

    stage: str
    mean_s: float
    p50_s: float
    p99_s: float
    queue_share: float
    batch_wait_share: float
    compute_share: float
    mean_batch_size: float


@dataclass(frozen=True, slots=True)
class Medians:
    """One load, or one step of a ramp, over all of its repeats.

    Times are medians over the repeats that have them, None where none has. `errors`, `shed`, `timeouts` and
    `num_failed` are sums, for a median would hide what went wrong in one repeat only.
    """

    load: SingleLoad
    step: int | None
    repeats: int
    requests_per_s: float
    good_per_s: float | None
    latency: MedianTimes | None
    ttft: MedianTimes | None
    inter_token: MedianTimes | None
    num_failed: int
    shed: int
    timeouts: int
    errors: dict[str, int]
    stages: list[MedianStage]

    def to_json(self) -> dict[str, Any]:
        times = {name: getattr(self, name) for name in ("latency", "ttft", "inter_token")}
        rest = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in times}
        return {
            **rest,
            "load": self.load.model_dump(mode="json"),
            **{name: None if value is None else asdict(value) for name, value in times.items()},
            "stages": [asdict(stage) for stage in self.stages],
        }


def medians_of(runs: Iterable[LoadRun]) -> list[Medians]:
    """Return the medians of every load and step, in the order of their first run.

    The probes of a saturation search are left out: they differ from one search to the next.
    """
    repeats: defaultdict[tuple[int, int | None], list[LoadRun]] = defaultdict(list)
    for run in runs:
        if not run.id.is_probe:
            repeats[run.id.index, run.id.step].append(run)
    return [_medians(group) for group in repeats.values()]


def _medians(runs: Sequence[LoadRun]) -> Medians:
    summaries = [run.summary for run in runs]
    good_per_s = [summary.goodput.good_per_s for summary in summaries if summary.goodput is not None]
    errors: Counter[str] = Counter()
    for summary in summaries:
        errors.update(summary.errors)
    return Medians(
        load=runs[0].load,
        step=runs[0].id.step,
        repeats=len(runs),
        requests_per_s=statistics.median(summary.requests_per_s for summary in summaries),
        good_per_s=statistics.median(good_per_s) if good_per_s else None,
        latency=_times(summary.latency for summary in summaries),
        ttft=_times(summary.ttft for summary in summaries),
        inter_token=_times(summary.inter_token for summary in summaries),
        num_failed=sum(summary.num_failed for summary in summaries),
        shed=sum(summary.shed for summary in summaries),
        timeouts=sum(summary.timeouts for summary in summaries),
        errors=dict(errors),
        stages=_stages(stage for run in runs for stage in run.stages),
    )


def _times(distributions: Iterable[Distribution | None]) -> MedianTimes | None:
    known = [distribution for distribution in distributions if distribution is not None]
    if not known:
        return None
    names = (field.name for field in fields(MedianTimes))
    return MedianTimes(**{name: statistics.median(getattr(one, name) for one in known) for name in names})


def _stages(stages: Iterable[StageSummary]) -> list[MedianStage]:
    by_name: defaultdict[str, list[StageSummary]] = defaultdict(list)
    for stage in stages:
        by_name[stage.stage].append(stage)
    return [_median_stage(name, repeats) for name, repeats in by_name.items()]


def _median_stage(name: str, repeats: Sequence[StageSummary]) -> MedianStage:
    return MedianStage(
        stage=name,
        mean_s=statistics.median(stage.total.mean_s for stage in repeats),
        p50_s=statistics.median(stage.total.p50_s for stage in repeats),
        p99_s=statistics.median(stage.total.p99_s for stage in repeats),
        queue_share=statistics.median(stage.queue_share for stage in repeats),
        batch_wait_share=statistics.median(stage.batch_wait_share for stage in repeats),
        compute_share=statistics.median(stage.compute_share for stage in repeats),
        mean_batch_size=statistics.median(stage.mean_batch_size for stage in repeats),
    )
