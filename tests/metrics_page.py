"""Readings as the page that Ray's agents serve, so that tests go the whole way from counting to reporting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deployments.telemetry import Reading


def page(readings: Iterable[Reading], **replica: str) -> str:
    """The readings of one replica in Prometheus' text format; `replica` gives the labels that Ray and Serve add."""
    return "".join(
        f"{metric.exported}{{{_labels({**dict(zip(metric.labels, labels, strict=True)), **replica})}}} {value}\n"
        for metric, labels, value in readings
    )


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items())
