"""What a process counts: latencies by bucket, stages, batches, drops, and the time with work in hand."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments import telemetry
from deployments.contracts import StageTiming, Usage
from deployments.errors import DeadlineExceeded, EngineDead, EngineFailed
from deployments.tally import BatchTally, BusyClock, DropTally, LaneTally, Latency, RequestTally
from deployments.telemetry import BOUNDS_S, LE_LABELS, METRICS, STAGE, Metric, Reading


def value(readings: list[Reading], metric: Metric, *labels: str) -> float:
    """The one reading of a metric with these labels."""
    (found,) = [value for read, read_labels, value in readings if (read, read_labels) == (metric, labels)]
    return found


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_bucket_counts_what_took_no_longer_than_its_bound(seconds: list[float]) -> None:
    latency = Latency()
    for one in seconds:
        latency.add(one)
    readings = list(latency.read(STAGE, ("embed", "")))
    assert value(readings, STAGE.count, "embed", "") == len(seconds)
    assert value(readings, STAGE.seconds, "embed", "") == pytest.approx(sum(seconds))
    for bound, le in zip(BOUNDS_S, LE_LABELS, strict=False):
        assert value(readings, STAGE.bucket, "embed", "", le) == sum(one <= bound for one in seconds)
    assert value(readings, STAGE.bucket, "embed", "", "+Inf") == len(seconds)


def test_the_buckets_reach_from_a_millisecond_to_a_minute_in_small_steps() -> None:
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
    assert 0.001 in BOUNDS_S
    assert BOUNDS_S[-1] == 60
    fine = [bound for bound in BOUNDS_S if bound >= 0.001]
    assert all(later / earlier < 1.3 for earlier, later in pairwise(fine))
    assert len(set(LE_LABELS)) == len(LE_LABELS) == len(BOUNDS_S) + 1


def test_every_metric_has_a_name_of_its_own_that_tells_its_unit() -> None:
    names = [metric.exported for metric in METRICS]
    assert len(set(names)) == len(names)
    assert telemetry.metric_names() == {metric.exported: metric.labels for metric in METRICS}
    for metric in METRICS:
        assert metric.exported.startswith("ray_raglane_")
        assert metric.exported.endswith("_total") == (metric.kind == "counter")
        assert metric.description


def test_the_lane_counts_each_branch_of_a_stage_by_itself() -> None:
    tally = LaneTally()
    tally.stage("search", "vector", 0.5, 0.2, StageTiming(batch_wait_s=0.1, compute_s=0.2, batch_size=3))
    tally.stage("search", "vector", 1.5, 0.5, StageTiming(batch_wait_s=0.4, compute_s=0.6, batch_size=5))
    tally.stage("search", "text", 9.0, 0.0, StageTiming(compute_s=9.0))
    readings = list(tally.read())
    sums = (STAGE.seconds, telemetry.STAGE_QUEUE, telemetry.STAGE_BATCH_WAIT, telemetry.STAGE_COMPUTE)
    assert [value(readings, metric, "search", "vector") for metric in sums] == pytest.approx([2.0, 0.7, 0.5, 0.8])
    assert value(readings, STAGE.count, "search", "vector") == 2
    assert value(readings, telemetry.STAGE_BATCH_SIZE, "search", "vector") == 8
    assert value(readings, STAGE.count, "search", "text") == 1


def test_the_first_word_and_the_gaps_after_it_are_counted_apart() -> None:
    tally = LaneTally()
    tally.written("llm", [0.25, 0.35, 0.65], Usage(prompt_tokens=100, completion_tokens=3))
    tally.written("llm", [], Usage(prompt_tokens=50))
    readings = list(tally.read())
    assert value(readings, telemetry.TTFT.count, "llm") == 1
    assert value(readings, telemetry.TTFT.seconds, "llm") == 0.25
    assert value(readings, telemetry.INTER_TOKEN.count, "llm") == 2
    assert value(readings, telemetry.INTER_TOKEN.seconds, "llm") == pytest.approx(0.4)
    assert value(readings, telemetry.TOKENS, "llm", "in") == 150
    assert value(readings, telemetry.TOKENS, "llm", "out") == 3


def test_degraded_stages_are_counted_each_by_reason() -> None:
    tally = LaneTally()
    tally.degraded({"rewrite": EngineFailed.reason, "rerank": DeadlineExceeded.reason})
    tally.degraded({"rerank": DeadlineExceeded.reason})
    tally.degraded({"rerank": EngineDead.reason})
    tally.degraded({})
    assert {labels: count for _, labels, count in tally.read()} == {
        ("rewrite", "failed"): 1,
        ("rerank", "expired"): 2,
        ("rerank", "unavailable"): 1,
    }


def test_requests_are_counted_by_endpoint_and_outcome() -> None:
    tally = RequestTally()
    tally.add("/v1/search", "ok", 0.5)
    tally.add("/v1/search", "shed", 0.25)
    readings = list(tally.read())
    assert value(readings, telemetry.REQUEST.count, "/v1/search") == 2
    assert value(readings, telemetry.REQUEST.seconds, "/v1/search") == 0.75
    assert value(readings, telemetry.REQUESTS, "/v1/search", "shed") == 1


def test_a_batch_counts_its_rows_its_tokens_and_what_padding_makes_of_them() -> None:
    tally = BatchTally("embed")
    tally.add([8, 16], 0.5)
    tally.add([32], 0.25)
    assert {metric: value for metric, _, value in tally.read()} == {
        telemetry.BATCH_COUNT: 2,
        telemetry.BATCH_ROWS: 3,
        telemetry.BATCH_TOKENS: 56,
        telemetry.BATCH_PADDED: 64,
        telemetry.REPLICA_BUSY: 0.75,
    }


def test_padding_counts_for_what_it_costs_the_engine() -> None:
    for padding_cost, padded in ((0.0, 24), (0.5, 28), (1.0, 32)):
        tally = BatchTally("embed", padding_cost)
        tally.add([8, 16], 0.5)
        readings = {metric: value for metric, _, value in tally.read()}
        assert (readings[telemetry.BATCH_TOKENS], readings[telemetry.BATCH_PADDED]) == (24, padded)


def test_nothing_dropped_is_nothing_to_read() -> None:
    tally = DropTally("rerank")
    tally.add("failed", 0)
    assert list(tally.read()) == []
    tally.add("expired")
    tally.add("expired", 2)
    assert list(tally.read()) == [(telemetry.DROPPED, ("rerank", "expired"), 3)]


def test_time_with_several_things_in_hand_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def busy_s(clock: BusyClock) -> float:
        ((metric, labels, seconds),) = clock.read()
        assert (metric, labels) == (telemetry.REPLICA_BUSY, ("search",))
        return seconds

    clock = BusyClock("search")
    with clock:
        now += 1
        with clock:
            now += 2
        now += 3
        assert busy_s(clock) == 6
    now += 50
    assert busy_s(clock) == 6
    with clock:
        now += 4
    assert busy_s(clock) == 10
