"""Arrival schedules and the order of the queries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.experiment import OpenLoad
from benchmarks.load import Limits, arrival_times, shuffled_cycle


def poisson(rate_per_s: float, horizon_s: float, seed: int, max_requests: int = 10**6) -> NDArray[np.float64]:
    load = OpenLoad(kind="open", rate_per_s=rate_per_s)
    return arrival_times(load, Limits(horizon_s, max_requests), np.random.default_rng(seed))


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    assert np.array_equal(poisson(50, 10, seed=1), poisson(50, 10, seed=1))
    assert not np.array_equal(poisson(50, 10, seed=1)[:100], poisson(50, 10, seed=2)[:100])


def test_poisson_arrivals_come_at_the_rate_with_exponential_gaps_up_to_the_horizon() -> None:
    times = poisson(200, 100, seed=5)
    gaps = np.diff(times, prepend=0.0)
    assert len(times) == pytest.approx(200 * 100, rel=0.03)
    assert 99.5 < times[-1] < 100
    # An exponential variable with mean m exceeds x with probability exp(-x / m), and its deviation equals its mean.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    for multiple in (0.1, 1.0, 3.0):
        assert (gaps > multiple / 200).mean() == pytest.approx(np.exp(-multiple), abs=0.015)


def test_constant_arrivals_are_evenly_spaced() -> None:
    load = OpenLoad(kind="open", rate_per_s=4, arrivals="constant")
    times = arrival_times(load, Limits(1.1, 100), np.random.default_rng(0))
    assert times.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_a_schedule_holds_no_more_than_the_allowed_requests(arrivals: str) -> None:
    load = OpenLoad.model_validate({"kind": "open", "rate_per_s": 1000, "arrivals": arrivals})
    assert len(arrival_times(load, Limits(10.0, 17), np.random.default_rng(0))) == 17


def test_queries_cycle_in_a_seeded_order_that_changes_with_every_pass() -> None:
    def first(count: int, seed: int) -> list[int]:
        return list(itertools.islice(shuffled_cycle(20, np.random.default_rng(seed)), count))

    order = first(60, seed=4)
    passes = [order[:20], order[20:40], order[40:]]
    assert all(sorted(one) == list(range(20)) for one in passes)
    assert passes[0] != passes[1]
    assert order == first(60, seed=4)
    assert order != first(60, seed=5)
