"""Scaling by the items that replicas have in hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deployments.autoscaling import ItemCount, scale_by_items


def context(items: dict[str, float] | None, current: int = 2) -> Any:
    metrics = None if items is None else {"items": items}
    config = SimpleNamespace(get_target_ongoing_requests=lambda: 16)
    return SimpleNamespace(
        aggregated_metrics=metrics, current_num_replicas=current, target_num_replicas=current, config=config
    )


@pytest.mark.parametrize(
    ("items", "wanted"), [({"a": 16.0, "b": 16.0}, 2), ({"a": 64.0, "b": 32.0}, 6), ({"a": 1.0, "b": 0.0}, 1 / 16)]
)
def test_as_many_replicas_as_bring_each_to_its_target(items: dict[str, float], wanted: float) -> None:
    assert scale_by_items(context(items)) == (wanted, {})


def test_without_metrics_the_number_of_replicas_stays() -> None:
    assert scale_by_items(context(None)) == (2, {})
    assert scale_by_items(context({})) == (2, {})


def test_items_are_counted_while_their_hop_is_served_and_no_longer() -> None:
    count = ItemCount()
    with count.of([1, 2, 3]):
        with count.of([4]):
            assert count.stats() == {"items": 4.0}
        assert count.stats() == {"items": 3.0}
    assert count.stats() == {"items": 0.0}


def test_items_of_a_hop_that_failed_are_not_counted_for_ever() -> None:
    count = ItemCount()
    with pytest.raises(ValueError, match="boom"):
        _fail_within(count)
    assert count.stats() == {"items": 0.0}


def _fail_within(count: ItemCount) -> None:
    with count.of([1]):
        raise ValueError("boom")
