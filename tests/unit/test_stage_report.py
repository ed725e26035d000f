"""The latency report: from the pages of a cluster's nodes to each stage's figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments import telemetry
from deployments.contracts import STAGES, Stage, StageTiming
from deployments.tally import BatchTally, LaneTally, Latency
from deployments.telemetry import BOUNDS_S, Reading
from serve_app.node_metrics import Snapshot, parse
from serve_app.stage_figures import NodeState, StageReport
from serve_app.stage_report import build_report, percentile
from tests.metrics_page import page


class Replica:
    """One replica of a cluster that exists on paper."""

    def __init__(self, deployment: str, stage: str, name: str) -> None:
        self._names = {"deployment": deployment, "replica": name, "application": "raglane"}
        self._stage = stage
        self.lane = LaneTally()
        self.batches = BatchTally(stage)
        self.began_at_s = 0.0
        self.lived_s = 0.0
        self.busy_s = 0.0
        self.cpu_s = 0.0

    def page(self) -> str:
        return page(self._read(), **self._names)

    def _read(self) -> Iterator[Reading]:
        yield from self.lane.read()
        yield telemetry.REPLICA_SECONDS, (self._stage,), self.lived_s
        yield telemetry.REPLICA_STARTED, (self._stage,), self.began_at_s
        yield telemetry.REPLICA_CPU, (self._stage,), self.cpu_s
        batches = [reading for reading in self.batches.read() if reading[0] is not telemetry.REPLICA_BUSY]
        yield from (reading for reading in batches if reading[2])
        yield telemetry.REPLICA_BUSY, (self._stage,), self.busy_s


def snapshot(at_s: float, *replicas: Replica) -> Snapshot:
    page_of_all = "# TYPE ray_other counter\nray_other 5\n" + "".join(one.page() for one in replicas)
    return Snapshot(at_s, parse(page_of_all), taken_at_unix_s=at_s)


def stages_of(report_stages: tuple[StageReport, ...]) -> Mapping[str, StageReport]:
    return {stage.stage: stage for stage in report_stages}


def call(replica: Replica, stage: Stage, total_s: float, branch: str = "", batch_size: int = 1) -> None:
    """A call of which a tenth is queueing, a fifth waiting for a batch, and the rest computing."""
    timing = StageTiming(0.2 * total_s, 0.7 * total_s, batch_size)
    replica.lane.stage(stage, branch, total_s, 0.1 * total_s, timing)


def test_every_stage_of_the_lane_is_reported_even_where_nothing_was_asked() -> None:
    report = build_report(snapshot(5.0))
    assert tuple(stage.stage for stage in report.stages) == STAGES
    assert all(stage.count == stage.mean_s == stage.rate_per_s == 0 for stage in report.stages)
    assert report.bottleneck is None
    assert report.deployments == ()


def test_counts_and_sums_add_up_over_replicas_and_branches() -> None:
    first, second = Replica("Ingress", "ingress", "a"), Replica("Ingress", "ingress", "b")
    first.began_at_s, second.began_at_s = 40.0, 46.0
    call(first, "search", 1.0, "vector", batch_size=4)
    call(second, "search", 2.0, "vector", batch_size=8)
    call(second, "search", 6.0, "text", batch_size=3)
    report = build_report(snapshot(50.0, first, second))
    search = stages_of(report.stages)["search"]
    assert (search.count, search.seconds_total, search.mean_s) == (3, 9.0, 3.0)
    assert (search.queue_s, search.batch_wait_s, search.compute_s) == pytest.approx((0.3, 0.6, 2.1))
    assert (search.queue_share, search.batch_wait_share, search.compute_share) == pytest.approx((0.1, 0.2, 0.7))
    assert search.batch_size == 5.0
    assert report.window_s == 10.0
    assert search.rate_per_s == pytest.approx(0.3)
    by_branch = {branch.branch: branch for branch in search.branches}
    assert {name: (one.count, one.mean_s) for name, one in by_branch.items()} == {"vector": (2, 1.5), "text": (1, 6.0)}


def test_a_window_is_what_happened_in_it_while_counts_stay_those_since_the_start() -> None:
    ingress = Replica("Ingress", "ingress", "a")
    ingress.lived_s = 100.0
    call(ingress, "embed", 50.0)
    before = snapshot(1000.0, ingress)
    ingress.lived_s = 104.0
    call(ingress, "embed", 0.5)
    call(ingress, "embed", 1.5)
    report = build_report(snapshot(1004.0, ingress), before)
    embed = stages_of(report.stages)["embed"]
    assert (embed.count, embed.seconds_total) == (3, 52.0)
    assert (report.window_s, embed.rate_per_s, embed.mean_s) == (4.0, 0.5, 1.0)
    assert embed.p99_s < 2.0


def test_a_replica_that_came_in_the_window_counts_with_all_it_did() -> None:
    old, new = Replica("Ingress", "ingress", "old"), Replica("Ingress", "ingress", "new")
    old.lived_s = 10.0
    before = snapshot(0.0, old)
    old.lived_s, new.lived_s = 12.0, 1.0
    call(new, "rerank", 0.25)
    report = build_report(snapshot(2.0, old, new), before)
    assert stages_of(report.stages)["rerank"].rate_per_s == 0.5
    assert report.deployments[0].replicas == 2


def test_the_time_since_the_start_is_that_of_all_replicas_there_were() -> None:
    gone, here = Replica("Ingress", "ingress", "gone"), Replica("Ingress", "ingress", "here")
    gone.began_at_s, gone.lived_s = 100.0, 30.0
    here.began_at_s, here.lived_s = 130.0, 10.0
    for replica in (gone, here):
        call(replica, "rerank", 0.25)
    report = build_report(snapshot(140.0, gone, here))
    assert report.window_s == 40.0
    assert stages_of(report.stages)["rerank"].rate_per_s == 2 / 40


def test_a_node_that_did_not_answer_at_first_adds_nothing_to_the_window_and_is_named() -> None:
    here, there = Replica("Ingress", "ingress", "here"), Replica("Ingress", "ingress", "there")
    for replica in (here, there):
        call(replica, "embed", 1.0)
    answered, silent = NodeState("a", "10.0.0.1", 1, "", None), NodeState("b", "10.0.0.2", 1, "timed out", None)
    before = Snapshot(0.0, parse(here.page(), "a"), (answered, silent))
    call(here, "embed", 1.0)
    now = Snapshot(2.0, [*parse(here.page(), "a"), *parse(there.page(), "b")], (answered, replace(silent, error="")))
    report = build_report(now, before)
    embed = stages_of(report.stages)["embed"]
    assert (embed.rate_per_s, embed.count) == (0.5, 3)
    assert [node.error for node in report.nodes] == ["", "timed out"]


def test_a_page_that_lacks_part_of_what_a_replica_counts_is_read_all_the_same() -> None:
    ingress = Replica("Ingress", "ingress", "a")
    call(ingress, "embed", 1.0)
    ingress.batches.add([8], 0.1)
    ingress.lived_s = 1.0
    whole = ingress.page().splitlines(keepends=True)
    for lines in range(len(whole)):
        build_report(Snapshot(1.0, parse("".join(whole[:lines]))))
        build_report(Snapshot(1.0, parse("".join(whole[lines:]))))


def test_a_deployment_whose_replicas_are_gone_is_not_reported() -> None:
    gone, here = Replica("Embedder", "embed", "gone"), Replica("Embedder", "embed", "here")
    gone.lived_s, here.lived_s = 10.0, 10.0
    before = snapshot(0.0, gone, here)
    here.lived_s = 15.0
    (embedder,) = build_report(snapshot(5.0, gone, here), before).deployments
    assert embedder.replicas == 1


def test_utilisation_is_busy_time_per_replica() -> None:
    ingress = Replica("Ingress", "ingress", "i")
    ingress.lived_s, ingress.cpu_s = 10.0, 4.0
    call(ingress, "context", 1.0)
    embedders = [Replica("Embedder", "embed", name) for name in "ab"]
    for embedder, busy_s in zip(embedders, (2.0, 8.0), strict=True):
        embedder.lived_s, embedder.busy_s, embedder.cpu_s = 10.0, busy_s, 2 * busy_s
    report = build_report(snapshot(0.0, ingress, *embedders))
    by_name = {one.deployment: one for one in report.deployments}
    assert (by_name["Embedder"].replicas, by_name["Embedder"].utilisation, by_name["Embedder"].cpu) == (2, 0.5, 1.0)
    assert by_name["Ingress"].utilisation == 0.4
    stages = stages_of(report.stages)
    assert stages["embed"].utilisation == 0.5
    assert stages["context"].utilisation == pytest.approx(0.07)
    assert stages["rerank"].utilisation is None


def test_of_two_deployments_of_one_stage_the_busier_speaks_for_it() -> None:
    model, fallback = Replica("Generator", "generate", "g"), Replica("FallbackGenerator", "generate", "f")
    for replica, busy_s in ((model, 9.0), (fallback, 1.0)):
        replica.lived_s, replica.busy_s = 10.0, busy_s
    report = build_report(snapshot(0.0, model, fallback))
    assert stages_of(report.stages)["generate"].utilisation == 0.9


def test_batches_are_described_where_a_deployment_makes_them() -> None:
    embedder, retriever = Replica("Embedder", "embed", "e"), Replica("Retriever", "search", "r")
    ingress = Replica("Ingress", "ingress", "i")
    for replica in (embedder, retriever, ingress):
        replica.lived_s = 10.0
    embedder.batches.add([8, 24], 0.1)
    embedder.batches.add([16], 0.1)
    by_name = {one.deployment: one for one in build_report(snapshot(10.0, embedder, retriever, ingress)).deployments}
    described = by_name["Embedder"]
    assert described.rows_per_batch == 1.5
    assert described.tokens_per_s == pytest.approx(4.8)
    assert described.padding_share == pytest.approx(1 - 48 / 64)
    assert (by_name["Retriever"].rows_per_batch, by_name["Retriever"].padding_share) == (None, None)


@given(st.lists(st.floats(0.0011, 59), min_size=1, max_size=60), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_lies_in_the_bucket_of_the_value_it_stands_for(seconds: list[float], share: float) -> None:
    latency = Latency()
    for one in seconds:
        latency.add(one)
    cumulative = [value for metric, _, value in latency.read(telemetry.STAGE, ("embed", "")) if "bucket" in metric.name]
    exact = sorted(seconds)[math.ceil(share * len(seconds) - 1e-9) - 1]
    assert exact / 1.26 < percentile(cumulative, share) < exact * 1.26


def test_percentiles_of_nothing_and_of_what_is_beyond_all_bounds() -> None:
    assert percentile([], 0.5) == 0
    beyond = Latency()
    beyond.add(1000.0)
    cumulative = [value for metric, _, value in beyond.read(telemetry.STAGE, ("", "")) if "bucket" in metric.name]
    assert percentile(cumulative, 0.5) == BOUNDS_S[-1]
