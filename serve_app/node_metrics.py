"""Reading raglane's metrics from the metrics endpoints of all live Ray nodes. Needs no Prometheus server."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from deployments.telemetry import PREFIX, Metric
from serve_app.stage_figures import NodeState

SCRAPE_TIMEOUT_S = 5.0

# Ray's agents export the machine's load beside everything else; a replica more needs CPUs that are free.
_NODE_CPU = f"{PREFIX}node_cpu_utilization"
_WANTED = (f"{PREFIX}raglane_", _NODE_CPU)


@dataclass(frozen=True, slots=True)
class Node:
    """A live node of the cluster and where its metrics are."""

    node_id: str
    address: str
    metrics_port: int


@dataclass(frozen=True, slots=True)
class Series:
    """One exported series: its name, labels and value, and the node that it was read from."""

    name: str
    labels: Mapping[str, str]
    value: float
    node_id: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """raglane's series in the cluster at one moment: of this process's monotonic clock, and in seconds since 1970."""

    taken_at_s: float
    series: Sequence[Series] = ()
    nodes: Sequence[NodeState] = field(default_factory=tuple)
    taken_at_unix_s: float = 0.0

    def of(self, metric: Metric) -> Iterable[Series]:
        """The series of one metric."""
        return (series for series in self.series if series.name == metric.exported)

    def of_application(self, name: str) -> Snapshot:
        """Without the series of other applications, which may run the same deployments in the same cluster."""
        series = tuple(one for one in self.series if one.labels.get("application") == name)
        return replace(self, series=series)


async def scrape(nodes: Sequence[Node]) -> Snapshot:
    """Read every node's endpoint at once. A node that does not answer is named in `nodes`, never an error."""
    async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S, trust_env=False) as http:
        read = await asyncio.gather(*(_scrape_node(http, node) for node in nodes))
    return Snapshot(
        taken_at_s=time.monotonic(),
        series=tuple(series for _, found in read for series in found),
        nodes=tuple(state for state, _ in read),
        taken_at_unix_s=time.time(),
    )


async def _scrape_node(http: httpx.AsyncClient, node: Node) -> tuple[NodeState, list[Series]]:
    host = f"[{node.address}]" if ":" in node.address else node.address
    try:
        response = await http.get(f"http://{host}:{node.metrics_port}/metrics")
        response.raise_for_status()
    except httpx.HTTPError as error:
        return NodeState(node.node_id, node.address, node.metrics_port, str(error) or type(error).__name__, None), []
    # Thousands of lines: parsing them here would hold up every request of this process.
    series = await asyncio.to_thread(parse, response.text, node.node_id)
    cpu_percent = next((one.value for one in series if one.name == _NODE_CPU), None)
    state = NodeState(node.node_id, node.address, node.metrics_port, "", cpu_percent)
    return state, [one for one in series if one.name != _NODE_CPU]


def parse(page: str, node_id: str = "") -> list[Series]:
    """raglane's series of a node's page in Prometheus' text format, in its order."""
    from prometheus_client.parser import text_string_to_metric_families

    lines = "\n".join(line for line in page.splitlines() if line.startswith(_WANTED))
    families: Iterable[Any] = text_string_to_metric_families(lines + "\n")
    return [
        # The exporter writes its zeros as the smallest number there is.
        Series(sample.name, sample.labels, sample.value if sample.value > sys.float_info.min else 0.0, node_id)
        for family in families
        for sample in family.samples
    ]
