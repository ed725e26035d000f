"""From samples to numbers: percentiles, windows, errors, stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.measure import Window, distribution, measured_window, stage_table, summarise
from benchmarks.records import Sample, StageTiming, error_kind_of

WINDOW = Window(1.0, 11.0)


def sample(start_s: float, latency_s: float = 0.1, **changes: Any) -> Sample:
    return Sample(start_s, start_s, start_s + latency_s, **{"status": 200, **changes})


def test_a_percentile_is_a_value_that_that_share_of_the_values_do_not_exceed() -> None:
    values = np.random.default_rng(3).permutation(np.arange(1, 101)).astype(float)
    found = distribution(values)
    assert found is not None
    assert (found.p50_s, found.p90_s, found.p99_s, found.max_s) == (50, 90, 99, 100)
    assert found.mean_s == pytest.approx(50.5)
    assert found.count == 100


def test_percentiles_of_few_values_are_among_them() -> None:
    found = distribution([0.5, 0.1])
    assert found is not None
    assert (found.p50_s, found.p90_s, found.p99_s) == (0.1, 0.5, 0.5)


def test_nothing_has_no_distribution() -> None:
    assert distribution([]) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, None),
        (204, None),
        (302, "http_3xx"),
        (404, "http_4xx"),
        (422, "http_4xx"),
        (429, "shed"),
        (500, "http_5xx"),
        (503, "http_5xx"),
        (504, "deadline"),
    ],
)
def test_sheds_and_deadlines_are_told_apart_from_other_statuses(status: int, kind: str | None) -> None:
    assert error_kind_of(status) == kind


def test_what_was_meant_to_start_in_the_warm_up_is_not_measured() -> None:
    summary = summarise([sample(0.5, 0.2), sample(1.0, 0.3), sample(10.9, 0.4), sample(11.0, 9.0)], WINDOW)
    assert summary.num_requests == 2
    assert summary.latency is not None
    assert summary.latency.max_s == pytest.approx(0.4)


def test_throughput_counts_answers_within_the_window_only() -> None:
    begun_before = sample(0.5, 1.0)
    within = [sample(2.0), sample(3.0)]
    answered_too_late = [sample(10.0, 5.0) for _ in range(50)]
    summary = summarise([begun_before, *within, *answered_too_late], WINDOW)
    assert summary.requests_per_s == pytest.approx(3 / 10)
    assert summary.offered_per_s == pytest.approx(52 / 10)
    assert summary.num_succeeded == 52


def test_errors_are_counted_by_kind_and_their_latencies_left_out() -> None:
    samples = [
        sample(2.0, 0.1),
        sample(2.0, 9.0, status=429, error_kind="shed", error="429: full"),
        sample(3.0, 9.0, status=429, error_kind="shed", error="429: still full"),
        sample(3.0, 9.0, status=None, error_kind="connection", error="refused"),
    ]
    summary = summarise(samples, WINDOW)
    assert summary.errors == {"shed": 2, "connection": 1}
    assert summary.error_examples == {"shed": "429: full", "connection": "refused"}
    assert summary.statuses == {"200": 1, "429": 2}
    assert (summary.num_succeeded, summary.num_failed) == (1, 3)
    assert summary.latency is not None
    assert summary.latency.max_s == pytest.approx(0.1)
    assert summary.requests_per_s == pytest.approx(0.1)


def test_sheds_and_timeouts_of_either_side_are_counted_apart_from_other_failures() -> None:
    kinds = ["shed", "shed", "timeout", "deadline", "http_5xx", "connection", "client_limit"]
    summary = summarise([sample(2.0, error_kind=kind) for kind in kinds], WINDOW)
    assert (summary.num_failed, summary.shed, summary.timeouts) == (7, 2, 2)


def test_latency_counts_from_the_intended_start_and_the_delay_stands_beside_it() -> None:
    late = Sample(intended_start_s=2.0, start_s=2.5, end_s=2.6, status=200)
    summary = summarise([late], WINDOW)
    assert summary.latency is not None
    assert summary.start_delay is not None
    assert summary.latency.p50_s == pytest.approx(0.6)
    assert summary.start_delay.p50_s == pytest.approx(0.5)


def test_degraded_answers_succeed_and_are_counted_by_stage() -> None:
    summary = summarise([sample(2.0, degraded=("rerank",)), sample(2.0, degraded=("rerank", "rewrite"))], WINDOW)
    assert summary.degraded == {"rerank": 2, "rewrite": 1}
    assert summary.num_failed == 0


def test_token_times_are_pooled_over_the_requests() -> None:
    samples = [sample(2.0, ttft_s=0.2, inter_token_s=(0.01, 0.03)), sample(2.0, ttft_s=0.4, inter_token_s=(0.02,))]
    summary = summarise(samples, WINDOW)
    assert summary.ttft is not None
    assert summary.inter_token is not None
    assert (summary.ttft.p50_s, summary.ttft.max_s) == (0.2, 0.4)
    assert (summary.inter_token.count, summary.inter_token.p50_s) == (3, 0.02)


def test_an_empty_window_measures_nothing() -> None:
    summary = summarise([sample(0.2)], Window(1.0, 0.5))
    assert (summary.num_requests, summary.requests_per_s, summary.latency) == (0, 0.0, None)


def test_a_load_that_ran_out_of_requests_is_measured_to_its_last_answer() -> None:
    samples = [sample(0.0), sample(1.0, 1.5)]
    assert measured_window(samples, warmup_s=0.0, horizon_s=60.0, max_requests=2).end_s == 2.5
    assert measured_window(samples, warmup_s=0.0, horizon_s=60.0, max_requests=3).end_s == 60.0


def test_stage_shares_are_of_the_stages_total_and_failed_requests_do_not_count() -> None:
    timings = (
        StageTiming("embed", total_s=0.1, queue_s=0.05, batch_wait_s=0.03, compute_s=0.02, batch_size=4),
        StageTiming("search", total_s=0.2, queue_s=0.0, batch_wait_s=0.0, compute_s=0.2, batch_size=1),
    )
    slow = (StageTiming("embed", total_s=0.3, queue_s=0.05, batch_wait_s=0.17, compute_s=0.08, batch_size=8),)
    samples = [
        sample(2.0, timings=timings),
        sample(2.0, timings=slow),
        sample(2.0, timings=slow, error_kind="malformed"),
        sample(0.1, timings=slow),
    ]
    embed, search = stage_table(samples, WINDOW)
    assert (embed.stage, search.stage) == ("embed", "search")
    assert (embed.total.count, search.total.count) == (2, 1)
    assert embed.total.mean_s == pytest.approx(0.2)
    assert embed.total.p99_s == pytest.approx(0.3)
    assert (embed.queue_share, embed.batch_wait_share, embed.compute_share) == pytest.approx((0.25, 0.5, 0.25))
    assert embed.mean_batch_size == 6
    assert search.compute_share == pytest.approx(1.0)


def test_a_stage_that_took_no_measurable_time_has_no_shares() -> None:
    (parse,) = stage_table([sample(2.0, timings=(StageTiming("parse", 0.0, 0.0, 0.0, 0.0, 1),))], WINDOW)
    assert (parse.queue_share, parse.compute_share) == (0.0, 0.0)


def test_a_raw_sample_holds_what_the_summary_was_made_from() -> None:
    timing = StageTiming("embed", 0.1, 0.05, 0.03, 0.02, 4)
    raw = Sample(2.0, 2.5, 2.6, 200, None, "", 0.55, (0.01,), (timing,), ("rerank",)).to_json()
    assert raw["intended_start_s"] == 2.0
    assert raw["start_s"] == 2.5
    assert raw["latency_s"] == 0.6
    assert raw["ttft_s"] == 0.55
    assert raw["inter_token_s"] == [0.01]
    assert StageTiming.from_json(raw["timings"][0]) == timing
