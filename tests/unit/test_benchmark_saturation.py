"""The search for the highest sustained rate, by what it tries and where it ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.experiment import SaturationLoad
from benchmarks.saturation import Probe, Saturation, search


def saturation(**changes: Any) -> SaturationLoad:
    return SaturationLoad.model_validate(
        {"kind": "saturation", "start_rate_per_s": 8, "max_rate_per_s": 1000, "max_probes": 100, **changes}
    )


def search_server(load: SaturationLoad, capacity_per_s: float) -> Saturation:
    """Search a server that sustains exactly the rates up to its capacity."""

    async def try_rate(rate_per_s: float) -> Probe:
        passed = rate_per_s <= capacity_per_s
        return Probe(rate_per_s, passed, "sustained" if passed else "too much", min(rate_per_s, capacity_per_s), 0.1)

    return asyncio.run(search(load, 0, try_rate))


@given(capacity_per_s=st.floats(1, 999), precision=st.floats(0.005, 1))
def test_the_border_is_found_to_the_precision(capacity_per_s: float, precision: float) -> None:
    found = search_server(saturation(precision=precision), capacity_per_s)
    assert found.max_rate_per_s <= capacity_per_s < found.max_rate_per_s * (1 + precision) * (1 + 1e-9)
    assert len(found.probes) < 30


@given(capacity_per_s=st.floats(0.001, 5000), max_probes=st.integers(2, 12))
def test_a_search_never_tries_more_rates_than_it_may_nor_higher_ones(capacity_per_s: float, max_probes: int) -> None:
    found = search_server(saturation(max_probes=max_probes), capacity_per_s)
    assert len(found.probes) <= max_probes
    assert max(probe.rate_per_s for probe in found.probes) <= 1000


def test_rates_double_until_one_fails_and_then_close_in() -> None:
    rates = [probe.rate_per_s for probe in search_server(saturation(precision=0.2), 40).probes]
    assert rates[:4] == [8, 16, 32, 64]
    assert 32 < rates[4] < 64


def test_a_search_that_fails_at_its_start_goes_down() -> None:
    found = search_server(saturation(), 3)
    assert [probe.rate_per_s for probe in found.probes[:3]] == [8, 4, 2]
    assert 2 <= found.max_rate_per_s <= 3


def test_a_search_ends_at_its_highest_rate_when_that_is_sustained() -> None:
    found = search_server(saturation(max_rate_per_s=100), 5000)
    assert found.max_rate_per_s == 100
    assert found.limit == "the highest rate that was tried is sustained"


def test_a_server_that_sustains_nothing_ends_the_search_at_0() -> None:
    found = search_server(saturation(), 0)
    assert found.max_rate_per_s == 0
    assert "too much" in found.limit
    assert len(found.probes) < 10


def test_the_limit_says_why_the_next_higher_rate_failed() -> None:
    found = search_server(saturation(), 40)
    lowest_failed = min(probe.rate_per_s for probe in found.probes if not probe.passed)
    assert found.limit == f"{lowest_failed:.4g} requests/s: too much"


def test_a_search_that_ran_out_of_probes_says_so() -> None:
    assert "max_probes" in search_server(saturation(max_probes=2), 5000).limit


def test_a_search_is_written_with_every_probe() -> None:
    written = json.loads(json.dumps(search_server(saturation(), 40).to_json()))
    assert written["load"]["kind"] == "saturation"
    assert set(written["probes"][0]) == {"rate_per_s", "passed", "reason", "requests_per_s", "p99_s"}


def test_a_search_that_starts_above_its_end_is_refused() -> None:
    with pytest.raises(ValueError, match="above max_rate_per_s"):
        saturation(start_rate_per_s=2000)
