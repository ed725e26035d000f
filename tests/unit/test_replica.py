"""What a process does because it is a replica, and leaves alone elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from deployments import replica


@pytest.fixture(autouse=True)
def collector_as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_a_replica_collects_garbage_seldom_and_not_what_it_has_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "in_replica", lambda: True)
    assert gc.get_freeze_count() == 0
    before = gc.get_threshold()
    replica.settle()
    assert gc.get_threshold()[0] > 10 * before[0]
    assert gc.get_freeze_count() > 0


def test_any_other_process_is_left_as_it_was() -> None:
    before = gc.get_threshold()
    replica.settle()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
