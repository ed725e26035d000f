"""The latency report: from the cluster's metrics to each stage's figures and the bottleneck. Pure arithmetic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from deployments import telemetry
from deployments.contracts import STAGES
from deployments.telemetry import BOUNDS_S, INGRESS, LE_LABELS, Metric
from serve_app.bottleneck import ByStage, find_bottleneck
from serve_app.node_metrics import Series, Snapshot
from serve_app.stage_figures import BranchReport, DeploymentReport, NodeState, StageReport, StagesReport

_LOCAL_STAGES = ("parse", "rewrite", "context")


def build_report(now: Snapshot, before: Snapshot | None = None) -> StagesReport:
    """What happened between the two snapshots, or since the start where there is no earlier one."""
    window = _Window(now, before)
    deployments = _deployments(window)
    by_stage: defaultdict[str, list[DeploymentReport]] = defaultdict(list)
    for deployment in deployments:
        by_stage[deployment.stage].append(deployment)
    stages = tuple(_stage(window, stage, by_stage) for stage in STAGES)
    nodes = _nodes(now, before)
    bottleneck = find_bottleneck(stages, by_stage, nodes)
    return StagesReport(window.length_s, stages, tuple(deployments), bottleneck, nodes)


_Key = tuple[str, str]
_By = Callable[[Mapping[str, str]], _Key]


class _Window:
    """The growth of every counter between two snapshots, and the counters as they stand."""

    def __init__(self, now: Snapshot, before: Snapshot | None) -> None:
        self._now = now
        earlier = {_identity(series): series.value for series in before.series} if before is not None else {}
        unread = _unread(before)
        self._growth: defaultdict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        for series in now.series:
            if series.node_id not in unread:
                # A replica that started in between has no earlier value: all that it counted is new.
                self._growth[series.name].append((series.labels, series.value - earlier.get(_identity(series), 0.0)))
        self.length_s = _since_start_s(now) if before is None else now.taken_at_s - before.taken_at_s

    def totals(self, metric: Metric, by: _By) -> defaultdict[_Key, float]:
        """The growth of a counter, added up by what `by` makes of the labels; 0 where the page had none of it yet."""
        sums: defaultdict[_Key, float] = defaultdict(float)
        for labels, value in self._growth[metric.exported]:
            sums[by(labels)] += value
        return sums

    def standing(self, metric: Metric, by: _By) -> defaultdict[_Key, float]:
        """A counter as it stands, since the start; 0 where the page had none of it yet."""
        sums: defaultdict[_Key, float] = defaultdict(float)
        for series in self._now.of(metric):
            sums[by(series.labels)] += series.value
        return sums

    def replicas(self) -> dict[_Key, int]:
        """How many replicas of each deployment lived in the window."""
        alive: defaultdict[_Key, set[str]] = defaultdict(set)
        for labels, value in self._growth[telemetry.REPLICA_SECONDS.exported]:
            if value > 0:
                alive[_by_deployment(labels)].add(labels.get("replica", ""))
        return {key: len(names) for key, names in alive.items()}

    def buckets(self, keep: Callable[[Mapping[str, str]], bool]) -> list[float]:
        """The cumulative counts of the stage latency's buckets, in the order of LE_LABELS."""
        sums = dict.fromkeys(LE_LABELS, 0.0)
        for labels, value in self._growth[telemetry.STAGE.bucket.exported]:
            if keep(labels):
                sums[labels["le"]] += value
        return list(sums.values())


def percentile(cumulative: Sequence[float], share: float) -> float:
    """The value in seconds that `share` of the observations do not exceed, 0 where there are none.

    Within its bucket it is taken to lie as far up as its rank does; beyond the last bound it is that bound.
    """
    total = cumulative[-1] if cumulative else 0.0
    if total <= 0:
        return 0.0
    rank = share * total
    edges = (0.0, *BOUNDS_S)
    for (low, high), below, upto in zip(pairwise(edges), (0.0, *cumulative), cumulative, strict=False):
        if upto >= rank and upto > below:
            return low + (high - low) * (rank - below) / (upto - below)
    return BOUNDS_S[-1]


def _stage(window: _Window, stage: str, by_stage: ByStage) -> StageReport:
    key = (stage, "")

    def grown(metric: Metric) -> float:
        return window.totals(metric, _by_stage).get(key, 0.0)

    calls = grown(telemetry.STAGE.count)
    seconds = grown(telemetry.STAGE.seconds)
    queue_s, batch_wait_s, compute_s = (
        grown(metric) for metric in (telemetry.STAGE_QUEUE, telemetry.STAGE_BATCH_WAIT, telemetry.STAGE_COMPUTE)
    )
    buckets = window.buckets(lambda labels: labels["stage"] == stage)
    return StageReport(
        stage=stage,
        count=round(window.standing(telemetry.STAGE.count, _by_stage).get(key, 0.0)),
        seconds_total=window.standing(telemetry.STAGE.seconds, _by_stage).get(key, 0.0),
        rate_per_s=_ratio(calls, window.length_s),
        mean_s=_ratio(seconds, calls),
        p50_s=percentile(buckets, 0.5),
        p90_s=percentile(buckets, 0.9),
        p99_s=percentile(buckets, 0.99),
        queue_s=_ratio(queue_s, calls),
        batch_wait_s=_ratio(batch_wait_s, calls),
        compute_s=_ratio(compute_s, calls),
        queue_share=_ratio(queue_s, seconds),
        batch_wait_share=_ratio(batch_wait_s, seconds),
        compute_share=_ratio(compute_s, seconds),
        batch_size=_ratio(grown(telemetry.STAGE_BATCH_SIZE), calls),
        utilisation=_utilisation(window, stage, by_stage),
        waiting=_ratio(queue_s + batch_wait_s, window.length_s),
        branches=tuple(_branches(window, stage)),
    )


def _branches(window: _Window, stage: str) -> Iterable[BranchReport]:
    standing, seconds_standing = (
        window.standing(metric, _by_call) for metric in (telemetry.STAGE.count, telemetry.STAGE.seconds)
    )
    calls, seconds = (window.totals(metric, _by_call) for metric in (telemetry.STAGE.count, telemetry.STAGE.seconds))
    for key in sorted(key for key in standing if key[0] == stage):
        buckets = window.buckets(lambda labels, key=key: _by_call(labels) == key)  # type: ignore[misc]
        yield BranchReport(
            branch=key[1],
            count=round(standing[key]),
            seconds_total=seconds_standing[key],
            rate_per_s=_ratio(calls[key], window.length_s),
            mean_s=_ratio(seconds[key], calls[key]),
            p50_s=percentile(buckets, 0.5),
            p90_s=percentile(buckets, 0.9),
            p99_s=percentile(buckets, 0.99),
        )


def _utilisation(window: _Window, stage: str, by_stage: ByStage) -> float | None:
    if stage in _LOCAL_STAGES:
        computed_s = window.totals(telemetry.STAGE_COMPUTE, _by_call).get((stage, ""), 0.0)
        lived_s = window.totals(telemetry.REPLICA_SECONDS, _by_stage).get((INGRESS, ""), 0.0)
        return _ratio(computed_s, lived_s) if lived_s else None
    return max((deployment.utilisation for deployment in by_stage.get(stage, ())), default=None)


def _deployments(window: _Window) -> list[DeploymentReport]:
    lived, busy, cpu = (
        window.totals(metric, _by_deployment)
        for metric in (telemetry.REPLICA_SECONDS, telemetry.REPLICA_BUSY, telemetry.REPLICA_CPU)
    )
    batches, rows, tokens, padded = (
        window.totals(metric, _by_deployment)
        for metric in (telemetry.BATCH_COUNT, telemetry.BATCH_ROWS, telemetry.BATCH_TOKENS, telemetry.BATCH_PADDED)
    )
    return [
        DeploymentReport(
            deployment=name,
            stage=stage,
            replicas=count,
            utilisation=min(1.0, _ratio(cpu.get(key, 0.0) if stage == INGRESS else busy.get(key, 0.0), lived[key])),
            cpu=_ratio(cpu.get(key, 0.0), lived[key]),
            rows_per_batch=_ratio(rows[key], batches[key]) if key in batches else None,
            tokens_per_s=_ratio(tokens[key], window.length_s) if key in batches else None,
            padding_share=1.0 - _ratio(tokens[key], padded[key]) if padded.get(key) else None,
        )
        for key, count in sorted(window.replicas().items())
        for stage, name in (key,)
    ]


def _unread(before: Snapshot | None) -> dict[str, str]:
    """The nodes that did not answer at the window's begin, and why: how their counters grew since nobody knows."""
    return {node.node_id: node.error for node in before.nodes if node.error} if before is not None else {}


def _nodes(now: Snapshot, before: Snapshot | None) -> Sequence[NodeState]:
    unread = _unread(before)
    return tuple(node if node.error else replace(node, error=unread.get(node.node_id, "")) for node in now.nodes)


def _since_start_s(now: Snapshot) -> float:
    """Since the first ingress began: what replicas have counted that are gone by now is in the sums."""
    began = [one.value for one in now.of(telemetry.REPLICA_STARTED) if one.labels["stage"] == INGRESS]
    return max(0.0, now.taken_at_unix_s - min(began)) if began else 0.0


def _identity(series: Series) -> tuple[str, frozenset[tuple[str, str]]]:
    return series.name, frozenset(series.labels.items())


def _by_stage(labels: Mapping[str, str]) -> _Key:
    return labels["stage"], ""


def _by_call(labels: Mapping[str, str]) -> _Key:
    return labels["stage"], labels["branch"]


def _by_deployment(labels: Mapping[str, str]) -> _Key:
    return labels["stage"], labels.get("deployment", "")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
