"""Goodput: which requests are good, and whether an SLO is met."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.experiment import Slo
from benchmarks.measure import Window, summarise
from benchmarks.records import Sample

WINDOW = Window(1.0, 11.0)
SLO = Slo(request_p99_s=1.0, ttft_s=0.3, itl_s=0.1)


def sample(start_s: float = 2.0, latency_s: float = 0.5, **changes: Any) -> Sample:
    return Sample(start_s, start_s, start_s + latency_s, **{"status": 200, **changes})


def goodput(samples: list[Sample], slo: Slo = SLO, *, stream: bool = True) -> Any:
    found = summarise(samples, WINDOW, slo, stream=stream).goodput
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("one", "is_good"),
    [
        (sample(ttft_s=0.3, inter_token_s=(0.1,)), True),
        (sample(latency_s=1.1, ttft_s=0.2), False),
        (sample(ttft_s=0.31), False),
        (sample(ttft_s=0.1, inter_token_s=(0.01, 0.17)), True),  # the mean counts, not the longest gap
        (sample(ttft_s=0.1, inter_token_s=(0.05, 0.17)), False),
        (sample(latency_s=0.2), True),  # no token at all: its latency is its time to the first
        (sample(latency_s=0.5), False),
        (sample(ttft_s=0.1, error_kind="stream"), False),
        (sample(ttft_s=0.1, degraded=("rerank",)), False),
    ],
)
def test_a_request_of_a_stream_is_good_when_it_keeps_every_limit(one: Sample, is_good: bool) -> None:
    found = goodput([one])
    assert (found.good, found.good_share, found.good_per_s) == (is_good, is_good, is_good / 10)
    assert found.met is is_good


def test_times_of_tokens_do_not_count_where_nothing_is_streamed() -> None:
    found = goodput([sample(ttft_s=9.0)], stream=False)
    assert found.good == 1
    assert set(found.within) == {"request_p99_s"}


def test_a_limit_that_is_null_is_kept_by_every_success() -> None:
    found = goodput([sample(latency_s=9.0, ttft_s=0.1)], Slo(request_p99_s=None))
    assert found.good == 1
    assert set(found.within) == {"ttft_s", "itl_s"}


@pytest.mark.parametrize(("num_slow", "met"), [(1, True), (2, False)])
def test_an_slo_is_met_when_ninety_nine_of_a_hundred_requests_keep_it(num_slow: int, met: bool) -> None:
    samples = [sample(ttft_s=0.1)] * (100 - num_slow) + [sample(latency_s=2.0, ttft_s=0.1)] * num_slow
    found = goodput(samples)
    assert found.met is met
    assert found.within["request_p99_s"] == pytest.approx(1 - num_slow / 100)
    assert found.within["ttft_s"] == 1.0


def test_each_limit_is_judged_by_itself() -> None:
    samples = [sample(ttft_s=0.1)] * 98 + [sample(ttft_s=0.9), sample(latency_s=2.0, ttft_s=0.1)]
    found = goodput(samples)
    assert found.met
    assert found.good == 98


def test_what_the_server_sheds_misses_the_slo() -> None:
    shed = sample(latency_s=0.001, status=429, error_kind="shed")
    found = goodput([sample(latency_s=0.1)] * 90 + [shed] * 10, stream=False)
    assert not found.met
    assert found.good_share == 0.9


def test_answers_without_a_stage_miss_the_slo_however_quick_they_are() -> None:
    found = goodput([sample(latency_s=0.1)] * 90 + [sample(latency_s=0.001, degraded=("rerank",))] * 10, stream=False)
    assert not found.met
    assert found.good_share == found.within["request_p99_s"] == 0.9
    assert found.good_per_s == pytest.approx(9.0)


def test_failures_miss_an_slo_none_of_whose_limits_apply() -> None:
    found = goodput([sample(error_kind="http_5xx")], Slo(request_p99_s=None), stream=False)
    assert not found.met


def test_no_request_meets_no_slo() -> None:
    found = goodput([sample(start_s=0.2, latency_s=0.1)])
    assert (found.met, found.good_share, found.good_per_s) == (False, 0.0, 0.0)


def test_goodput_counts_answers_within_the_window_like_throughput_does() -> None:
    samples = [sample(start_s=0.8, latency_s=0.3), sample(start_s=10.9, latency_s=0.2)]
    summary = summarise(samples, WINDOW, SLO)
    assert summary.goodput is not None
    assert summary.goodput.good == 1
    assert summary.goodput.good_per_s == summary.requests_per_s == pytest.approx(0.1)


def test_without_an_slo_there_is_no_goodput() -> None:
    assert summarise([sample()], WINDOW).goodput is None
