"""Whether a server keeps up with a load: answered share, failures, growing queues, the SLO."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.experiment import Criterion, Slo
from benchmarks.measure import Window, summarise
from benchmarks.records import Sample
from benchmarks.sustained import find_broken_promises, find_overload, find_shortcomings, latency_trend

WINDOW = Window(2.0, 12.0)
STARTS_S = [2.0 + number / 10 for number in range(100)]
CRITERION = Criterion()


def sample(start_s: float, latency_s: float = 0.1, **changes: Any) -> Sample:
    return Sample(start_s, start_s, start_s + latency_s, **{"status": 200, **changes})


def served(rate_per_s: float, capacity_per_s: float, seed: int = 0, horizon_s: float = 12.0) -> list[Sample]:
    """What one server that takes exactly 1 / capacity for a request makes of Poisson arrivals."""
    gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, int(2 * rate_per_s * horizon_s) + 20)
    arrivals: NDArray[np.float64] = np.cumsum(gaps)
    samples, free_s = [], 0.0
    for arrival_s in arrivals[arrivals < horizon_s].tolist():
        free_s = max(arrival_s, free_s) + 1 / capacity_per_s
        samples.append(Sample(arrival_s, arrival_s, free_s, status=200))
    return samples


@pytest.mark.parametrize("seed", range(10))
def test_a_server_with_room_to_spare_keeps_up(seed: int) -> None:
    assert find_shortcomings(served(60, 100, seed), WINDOW, CRITERION) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_server_with_too_little_room_does_not(seed: int) -> None:
    assert find_shortcomings(served(125, 100, seed), WINDOW, CRITERION)


def test_a_queue_that_grows_is_told_of_although_nearly_all_is_answered() -> None:
    lenient = Criterion(answered_share=0.5)
    (fault,) = find_shortcomings(served(115, 100), WINDOW, lenient)
    assert "the queue grew" in fault


def test_latency_that_rises_as_much_as_the_load_outruns_the_server_gives_that_share_as_its_slope() -> None:
    growing = [sample(start_s, 0.1 + 0.05 * start_s) for start_s in STARTS_S]
    trend = latency_trend(growing)
    assert trend is not None
    assert trend.slope == pytest.approx(0.05)
    assert trend.significant
    assert trend.exceeds(CRITERION)


def test_latency_that_falls_or_stays_is_no_growing_queue() -> None:
    falling = [sample(start_s, 1.0 - 0.05 * start_s) for start_s in STARTS_S]
    steady = [sample(start_s) for start_s in STARTS_S]
    assert find_shortcomings(falling, WINDOW, CRITERION) == []
    assert find_shortcomings(steady, WINDOW, CRITERION) == []


def test_one_late_spike_is_no_growing_queue() -> None:
    samples = [sample(start_s, 2.0 if 8.0 < start_s < 8.15 else 0.1) for start_s in STARTS_S]
    assert find_shortcomings(samples, WINDOW, CRITERION) == []


def test_too_few_answers_show_no_trend() -> None:
    assert latency_trend([sample(3.0 + n, n) for n in range(8)]) is None


def test_answers_that_come_after_the_window_are_not_counted_for_the_server() -> None:
    samples = [sample(start_s, 30.0) for start_s in STARTS_S]
    assert find_shortcomings(samples, WINDOW, CRITERION) == ["0 of 100 requests answered in 10.0 s"]


def test_failures_are_told_of_by_kind() -> None:
    shed = [sample(start_s, status=429, error_kind="shed") for start_s in (3.0, 4.0, 5.0)]
    fine = [sample(start_s) for start_s in STARTS_S]
    (fault,) = find_shortcomings([*fine, *shed], WINDOW, CRITERION)
    assert fault == "2.9% of the requests failed (shed 3)"
    assert find_shortcomings([*fine, *shed], WINDOW, Criterion(error_share=0.03)) == []


def test_a_server_that_leaves_out_a_stage_does_not_keep_up() -> None:
    without = [sample(start_s, degraded=("rerank",)) for start_s in (3.0, 4.0)]
    fine = [sample(start_s) for start_s in STARTS_S]
    (fault,) = find_shortcomings([*fine, *without], WINDOW, CRITERION)
    assert fault == "2.0% of the answers did without a stage (rerank 2)"
    assert find_shortcomings([*fine, *without], WINDOW, Criterion(error_share=0.03)) == []


def test_failures_and_answers_without_a_stage_are_counted_together() -> None:
    spoilt = [sample(3.0, status=429, error_kind="shed"), sample(4.0, degraded=("rewrite", "rerank"))]
    fine = [sample(start_s) for start_s in STARTS_S]
    assert find_shortcomings([*fine, *spoilt], WINDOW, CRITERION) == [
        "1.0% of the requests failed (shed 1)",
        "1.0% of the answers did without a stage (rewrite 1, rerank 1)",
    ]


def test_answers_without_a_stage_are_no_answers_to_what_was_offered() -> None:
    without = [sample(start_s, degraded=("rerank",)) for start_s in STARTS_S]
    faults = find_shortcomings(without, WINDOW, Criterion(error_share=0.99))
    assert faults == ["0 of 100 requests answered in 10.0 s", "100.0% of the answers did without a stage (rerank 100)"]


def test_a_window_without_requests_is_not_sustained() -> None:
    assert find_shortcomings([], WINDOW, CRITERION) == ["no request was offered"]


def test_the_slo_that_was_missed_is_named() -> None:
    samples = [sample(3.0, 0.2)] * 90 + [sample(3.0, 2.0)] * 10
    (fault,) = find_broken_promises(summarise(samples, WINDOW, Slo(request_p99_s=1.0)).goodput)
    assert fault == "the SLO was missed: request_p99_s kept by 90.0%"
    assert find_broken_promises(summarise(samples, WINDOW, Slo(request_p99_s=2.5)).goodput) == []
    assert find_broken_promises(None) == []


def overload(samples: list[Sample], in_flight: int = 0, elapsed_s: float = 7.0) -> str | None:
    return find_overload(samples, in_flight, warmup_s=2.0, elapsed_s=elapsed_s, duration_s=10.0)


def test_a_load_that_the_server_follows_goes_on() -> None:
    samples = [one for one in served(90, 100) if one.end_s < 7.0]
    assert overload(samples, in_flight=3) is None


def test_a_load_at_twice_what_the_server_can_do_is_given_up() -> None:
    sent = served(220, 100)
    samples = [one for one in sent if one.end_s < 7.0]
    in_flight = sum(one.intended_start_s < 7.0 <= one.end_s for one in sent)
    assert overload(samples, in_flight) is not None


def test_a_queue_that_grows_is_given_up_although_what_was_sent_last_has_no_answer_yet() -> None:
    sent = [sample(start_s, 0.5 * start_s) for start_s in STARTS_S]
    samples = [one for one in sent if one.end_s < 9.0]
    assert max(one.intended_start_s for one in samples) < 6.1
    in_flight = sum(one.intended_start_s < 9.0 <= one.end_s for one in sent)
    reason = overload(samples, in_flight, elapsed_s=9.0)
    assert reason is not None
    assert "the queue grew" in reason


def test_a_load_that_gets_no_answer_is_given_up() -> None:
    assert overload([], in_flight=40) == "0 of 40 requests answered in 5.0 s"


def test_a_load_is_not_given_up_before_there_is_enough_to_judge() -> None:
    assert overload([], in_flight=40, elapsed_s=3.0) is None
    assert overload([], in_flight=5) is None


def test_a_load_that_reached_the_clients_own_bound_is_given_up_at_once() -> None:
    reason = overload([sample(0.5, error_kind="client_limit")], elapsed_s=0.6)
    assert reason is not None
    assert "max_in_flight" in reason
