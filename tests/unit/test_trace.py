"""Deadline and Trace: how the time of a request is told."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contracts import StageTiming
from deployments.errors import DeadlineExceeded
from serve_app.trace import Deadline, Trace

seconds = st.floats(0, 100)


def test_a_deadline_counts_down_and_then_refuses() -> None:
    deadline = Deadline.after(60)
    first = deadline.remaining_s()
    assert 0 < deadline.remaining_s() <= first <= 60
    with pytest.raises(DeadlineExceeded, match=r"2\.5 s"):
        Deadline(time.monotonic() - 1, 2.5).remaining_s()


def test_queueing_is_what_waiting_and_computing_do_not_explain() -> None:
    trace = Trace()
    trace.add("embed", 1.0, StageTiming(batch_wait_s=0.25, compute_s=0.5, batch_size=7))
    (row,) = trace.rows
    assert (row.stage, row.total_s, row.batch_wait_s, row.compute_s, row.batch_size) == ("embed", 1.0, 0.25, 0.5, 7)
    assert row.queue_s == 0.25


@given(seconds, seconds, seconds)
def test_queueing_is_never_negative(total_s: float, batch_wait_s: float, compute_s: float) -> None:
    trace = Trace()
    trace.add("search", total_s, StageTiming(batch_wait_s, compute_s))
    assert trace.rows[0].queue_s >= 0


def test_a_stage_that_runs_right_here_only_computes_and_is_recorded_even_if_it_fails() -> None:
    trace = Trace()
    with pytest.raises(ZeroDivisionError):
        with trace.local("parse"):
            raise ZeroDivisionError
    (row,) = trace.rows
    assert (row.stage, row.queue_s, row.batch_wait_s, row.batch_size) == ("parse", 0.0, 0.0, 1)
    assert row.total_s == row.compute_s > 0


def test_server_timing_is_a_metric_per_stage_in_milliseconds() -> None:
    trace = Trace()
    trace.add("embed", 0.0123456, StageTiming())
    trace.add("search", 2.0, StageTiming())
    assert trace.server_timing() == "embed;dur=12.35, search;dur=2000.00"
    trace.add("search", 1.0, StageTiming(), "text")
    assert trace.server_timing().endswith(', search;desc="text";dur=1000.00')


def test_a_trace_without_stages_has_an_empty_server_timing() -> None:
    assert Trace().server_timing() == ""
