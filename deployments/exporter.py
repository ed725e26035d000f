"""Hands what a replica counted to Ray's metrics, once a second, from a thread of its own."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import Field

from deployments import telemetry
from deployments.replica import in_replica
from deployments.section import Section
from deployments.telemetry import Metric, Reading

logger = logging.getLogger(__name__)

EXPORT_INTERVAL_S = 1.0

Source = Callable[[], Iterable[Reading]]


class TelemetryConfig(Section):
    """Whether the server counts what it does. The timings in answers are there either way."""

    enabled: bool = Field(
        True,
        description="Export metrics through Ray. false: no replica does, the ingress counts neither requests nor calls "
        "of stages, and GET /v1/stages answers 404.",
    )


ENABLED = TelemetryConfig()


def export(config: TelemetryConfig, stage: str, *sources: Source) -> Lifetime:
    """Export what the sources read, and how long and how busily this process lives, for as long as it does.

    Exports nothing where telemetry is off, nor outside a Serve replica, where nobody would gather it.
    """
    lifetime = Lifetime(stage)
    if not config.enabled or not in_replica():
        return lifetime
    exporter = Exporter((lifetime.read, *sources), _ray_metric)
    threading.Thread(target=exporter.run, name=f"{stage}-metrics", daemon=True).start()
    return lifetime


class Exporter:
    """Turns sums since the start into Ray's metrics: a counter is told of what is new, a gauge of its value."""

    def __init__(self, sources: Iterable[Source], make: Callable[[Metric], Any]) -> None:
        """`make` makes the instrument of a metric: something with `inc` or, for a gauge, `set`."""
        self._sources = tuple(sources)
        self._make = make
        self._metrics: dict[str, Any] = {}
        self._told: dict[tuple[str, tuple[str, ...]], float] = {}

    def run(self) -> None:
        """Export for ever: a source that fails once must not end this thread."""
        while True:
            try:
                self.export_once()
            except Exception:
                logger.exception("metrics could not be exported")
            time.sleep(EXPORT_INTERVAL_S)

    def export_once(self) -> None:
        """Tell Ray what the sources read now. Several that read the same metric with the same labels are added up.

        What is read first is told last: Ray may collect in between, and whoever sees the first reading on a page must
        find all that was read after it there as well.
        """
        sums: defaultdict[tuple[Metric, tuple[str, ...]], float] = defaultdict(float)
        for source in self._sources:
            for metric, labels, value in source():
                sums[metric, labels] += value
        for (metric, labels), value in reversed(sums.items()):
            if metric.kind == "gauge":
                self._metric(metric).set(float(value), _tags(metric, labels))
                continue
            key = (metric.name, labels)
            new = value - self._told.get(key, 0.0)
            if new > 0:
                self._metric(metric).inc(float(new), _tags(metric, labels))
                self._told[key] = value
            elif key not in self._told:
                # A counter that is not there is no zero: Prometheus would miss its first step and, where it is a
                # bucket, the percentiles. Ray refuses to add nothing; to this number, adding 1 gives exactly 1.
                self._metric(metric).inc(sys.float_info.min, _tags(metric, labels))
                self._told[key] = 0.0

    def _metric(self, metric: Metric) -> Any:
        if metric.name not in self._metrics:
            self._metrics[metric.name] = self._make(metric)
        return self._metrics[metric.name]


def _tags(metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(metric.labels, labels, strict=True))


def _ray_metric(metric: Metric) -> Any:
    from ray.serve.metrics import Counter, Gauge

    kind = Gauge if metric.kind == "gauge" else Counter
    return kind(metric.name, description=metric.description, tag_keys=metric.labels)


class Lifetime:
    """How long this process has lived in its role, and the CPU time that it used meanwhile."""

    def __init__(self, stage: str) -> None:
        self._labels = (stage,)
        self._started_s = time.perf_counter()
        self._started_at = time.time()
        self._cpu_before_s = time.process_time()

    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._started_s

    def read(self) -> Iterator[Reading]:
        """What telemetry exports of it."""
        yield telemetry.REPLICA_SECONDS, self._labels, self.seconds()
        yield telemetry.REPLICA_STARTED, self._labels, self._started_at
        yield telemetry.REPLICA_CPU, self._labels, time.process_time() - self._cpu_before_s
