"""Scaling by items: hops are coalesced, so the calls that Serve counts say little about the work in hand."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

ITEMS = "items"


class ItemCount:
    """How many items of all calls a replica has in hand; a stage reports it as its autoscaling metric."""

    def __init__(self) -> None:
        self._num_items = 0

    @contextmanager
    def of(self, calls: Sized) -> Iterator[None]:
        """Count the items of one hop while they are worked on."""
        self._num_items += len(calls)
        try:
            yield
        finally:
            self._num_items -= len(calls)

    def stats(self) -> dict[str, float]:
        """What Serve's `record_autoscaling_stats` returns."""
        return {ITEMS: float(self._num_items)}


def scale_by_items(context: Any) -> tuple[float, dict[str, Any]]:
    """Autoscaling policy of Ray Serve: as many replicas as bring the items of each to `target_ongoing_requests`.

    Serve applies its own bounds, smoothing and delays to the number. Before the first metrics arrive nothing changes.
    """
    by_replica = (context.aggregated_metrics or {}).get(ITEMS)
    if not by_replica or context.current_num_replicas == 0:
        return context.target_num_replicas, {}
    return sum(by_replica.values()) / context.config.get_target_ongoing_requests(), {}
