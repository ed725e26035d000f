"""Asks the cluster for its metrics until they are fresh, and makes the latency report of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import ray

from deployments.errors import StageUnavailable
from deployments.telemetry import INGRESS, REPLICA_SECONDS
from serve_app.node_metrics import Node, Snapshot, scrape
from serve_app.stage_figures import StagesReport
from serve_app.stage_report import build_report

logger = logging.getLogger(__name__)

POLL_S = 0.3


class StageReporter:
    """The latency report, gathered anew each time it is asked for.

    Metrics lag behind by two export intervals, this process's and Ray's. How long this replica has lived is exported
    with everything else, and so tells what a page already includes.
    """

    def __init__(self, application: str, replica: str, lived_s: Callable[[], float], patience_s: float) -> None:
        """`application` and `replica` are this process's labels in the metrics, `patience_s` how long fresh figures are
        waited for."""
        self._application = application
        self._replica = replica
        self._lived_s = lived_s
        self._patience_s = patience_s

    async def report(self, window_s: float = 0.0) -> StagesReport:
        """Of the next `window_s` seconds, or of everything since the start. Raises StageUnavailable."""
        now = await self._fresh()
        if not window_s:
            return build_report(now)
        await asyncio.sleep(window_s)
        return build_report(await self._fresh(), now)

    async def _fresh(self) -> Snapshot:
        """The metrics as of now or a little later; the newest there are where they take too long."""
        wanted_s = self._lived_s()
        give_up_at = time.monotonic() + self._patience_s
        nodes = await asyncio.to_thread(_live_nodes)
        while True:
            snapshot = (await scrape(nodes)).of_application(self._application)
            if snapshot.nodes and all(node.error for node in snapshot.nodes):
                raise StageUnavailable(f"no node's metrics can be read: {snapshot.nodes[0].error}")
            if self._told_s(snapshot) >= wanted_s:
                return snapshot
            if time.monotonic() >= give_up_at:
                logger.info("the metrics are older than the question; is metrics_report_interval_ms above 1000?")
                return snapshot
            await asyncio.sleep(POLL_S)

    def _told_s(self, snapshot: Snapshot) -> float:
        ours = (
            series.value
            for series in snapshot.of(REPLICA_SECONDS)
            if series.labels["stage"] == INGRESS and series.labels.get("replica") == self._replica
        )
        return max(ours, default=0.0)


def _live_nodes() -> list[Node]:
    """The cluster's live nodes, asked of Ray. Blocks for a call to its head."""
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["MetricsExportPort"])
        for node in ray.nodes()
        if node["Alive"]
    ]
