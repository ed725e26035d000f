"""From sums since the start to what Ray's counters and gauges are told."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest

from deployments.contracts import StageTiming, Usage
from deployments.errors import Overloaded
from deployments.exporter import ENABLED, Exporter, TelemetryConfig, export
from deployments.tally import SilentTally
from deployments.telemetry import CACHE_BYTES, DROPPED, REPLICA_BUSY, REPLICA_SECONDS, Metric, Reading


class Told:
    """Instruments that remember what they were told, by metric and labels in the order of the first time."""

    def __init__(self) -> None:
        self.values: defaultdict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(list)

    def make(self, metric: Metric) -> Any:
        values = self.values

        class Instrument:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert value > 0, "Ray refuses to add nothing"
                values[metric.name, tuple(tags[label] for label in metric.labels)].append(value)

            def set(self, value: float, tags: dict[str, str]) -> None:
                values[metric.name, tuple(tags[label] for label in metric.labels)].append(value)

        return Instrument()


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_counter_is_told_what_is_new_and_nothing_where_nothing_is(told: Told) -> None:
    counts = iter((5.0, 5.0, 7.5))
    exporter = Exporter([lambda: [(DROPPED, ("embed", "expired"), next(counts))]], told.make)
    for _ in range(3):
        exporter.export_once()
    assert told.values == {(DROPPED.name, ("embed", "expired")): [5.0, 2.5]}


def test_a_counter_is_there_before_it_has_counted_anything_and_loses_nothing_by_it(told: Told) -> None:
    counts = iter((0.0, 0.0, 3.0))
    exporter = Exporter([lambda: [(DROPPED, ("embed", "expired"), next(counts))]], told.make)
    exporter.export_once()
    (first,) = told.values[DROPPED.name, ("embed", "expired")]
    assert 0 < first < 1e-300
    exporter.export_once()
    exporter.export_once()
    assert sum(told.values[DROPPED.name, ("embed", "expired")]) == 3.0


def test_what_is_read_first_is_told_last_as_the_mark_of_a_whole_export(told: Told) -> None:
    lifetime: list[Reading] = [(REPLICA_SECONDS, ("ingress",), 4.0)]
    counts: list[Reading] = [(DROPPED, ("embed", "expired"), 1.0), (CACHE_BYTES, ("answer",), 9)]
    Exporter([lambda: lifetime, lambda: counts], told.make).export_once()
    assert [name for name, _ in told.values][-1] == REPLICA_SECONDS.name
    assert len(told.values) == 3


def test_a_gauge_is_told_every_time_because_ray_forgets_it(told: Told) -> None:
    exporter = Exporter([lambda: [(CACHE_BYTES, ("answer",), 9)]], told.make)
    exporter.export_once()
    exporter.export_once()
    assert told.values == {(CACHE_BYTES.name, ("answer",)): [9.0, 9.0]}


def test_two_sources_of_one_series_are_added_up(told: Told) -> None:
    def source(count: float) -> Iterable[Reading]:
        return [(DROPPED, ("embed", "expired"), count), (DROPPED, ("embed", "cancelled"), 1.0)]

    exporter = Exporter([lambda: source(2.0), lambda: source(3.0)], told.make)
    exporter.export_once()
    assert told.values == {
        (DROPPED.name, ("embed", "expired")): [5.0],
        (DROPPED.name, ("embed", "cancelled")): [2.0],
    }


def test_a_clock_that_seems_to_step_back_adds_nothing_and_loses_nothing(told: Told) -> None:
    seconds = iter((4.0, 3.75, 5.0))
    exporter = Exporter([lambda: [(REPLICA_BUSY, ("search",), next(seconds))]], told.make)
    for _ in range(3):
        exporter.export_once()
    assert sum(told.values[REPLICA_BUSY.name, ("search",)]) == 5.0


def test_outside_a_replica_nothing_is_exported_but_life_is_timed() -> None:
    def never() -> Iterable[Reading]:
        raise AssertionError("nobody reads this")

    assert export(ENABLED, "embed", never).seconds() >= 0


def test_with_telemetry_off_nothing_is_exported_from_a_replica_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: None)
    assert export(TelemetryConfig(enabled=False), "embed").seconds() >= 0
    assert "embed-metrics" not in {thread.name for thread in threading.enumerate()}


def test_where_nothing_is_counted_there_is_nothing_to_read() -> None:
    tally = SilentTally()
    tally.stage("embed", "", 1.0, 0.5, StageTiming())
    tally.degraded({"rerank": Overloaded.reason})
    tally.written("extractive", [0.1, 0.2], Usage(1, 2))
    assert list(tally.read()) == []
