"""Medians over repeats."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest
from rich.console import Console

from benchmarks.experiment import OpenLoad, Slo
from benchmarks.load_run import LoadRun, RunId
from benchmarks.measure import Window, stage_table, summarise
from benchmarks.medians import medians_of
from benchmarks.records import ErrorKind, Sample, StageTiming
from benchmarks.report import print_medians

WINDOW = Window(0.0, 10.0)
LOAD = OpenLoad(kind="open", rate_per_s=1)


def run(run_id: RunId, latencies_s: Sequence[float], errors: Sequence[ErrorKind] = (), queue_s: float = 0.0) -> LoadRun:
    timings = (StageTiming("embed", 0.1, queue_s, 0.0, 0.1 - queue_s, 2),)
    samples = [Sample(1.0, 1.0, 1.0 + latency_s, 200, timings=timings) for latency_s in latencies_s]
    samples += [Sample(1.0, 1.0, 1.1, None, kind) for kind in errors]
    summary, stages = summarise(samples, WINDOW, Slo(request_p99_s=1.0)), stage_table(samples, WINDOW)
    return LoadRun(run_id, LOAD, run_id.seed(7), WINDOW, 0.1, summary, stages, None, None, None, samples)


def test_each_measure_is_the_median_over_its_repeats() -> None:
    repeats = [([0.1], 0.01), ([0.5, 0.5, 0.5], 0.03), ([0.3, 0.3], 0.02)]
    (found,) = medians_of(run(RunId(0, n), latencies, queue_s=queue) for n, (latencies, queue) in enumerate(repeats))
    assert found.repeats == 3
    assert found.requests_per_s == pytest.approx(0.2)
    assert found.good_per_s == pytest.approx(0.2)
    assert found.latency is not None
    assert (found.latency.p50_s, found.latency.p99_s) == pytest.approx((0.3, 0.3))
    assert found.ttft is None
    (stage,) = found.stages
    assert (stage.stage, stage.mean_batch_size) == ("embed", 2)
    assert stage.queue_share == pytest.approx(0.2)


def test_what_went_wrong_in_one_repeat_is_not_lost() -> None:
    errors: list[list[ErrorKind]] = [[], ["shed", "timeout", "http_5xx"], ["shed", "deadline"]]
    (found,) = medians_of(run(RunId(0, n), [0.1], kinds) for n, kinds in enumerate(errors))
    assert found.errors == {"shed": 2, "timeout": 1, "deadline": 1, "http_5xx": 1}
    assert (found.num_failed, found.shed, found.timeouts) == (5, 2, 2)


def test_a_repeat_without_a_success_does_not_hide_the_others_times() -> None:
    (found,) = medians_of([run(RunId(0, 0), []), run(RunId(0, 1), [0.4])])
    assert found.latency is not None
    assert found.latency.p50_s == pytest.approx(0.4)
    assert found.requests_per_s == pytest.approx(0.05)


def test_loads_and_steps_are_kept_apart_and_probes_left_out() -> None:
    ids = [RunId(0, 0), RunId(1, 0, 0), RunId(1, 0, 1), RunId(2, 0, 0, is_probe=True)]
    ids += [RunId(0, 1), RunId(1, 1, 0), RunId(1, 1, 1)]
    found = medians_of(run(one, [0.1]) for one in ids)
    assert [(one.step, one.repeats) for one in found] == [(None, 2), (0, 2), (1, 2)]


def test_every_run_of_an_experiment_has_a_seed_of_its_own() -> None:
    ids = [RunId(0, 0), RunId(0, 1), RunId(1, 0), RunId(1, 0, 0), RunId(1, 0, 1)]
    assert len({one.seed(7) for one in ids}) == len(ids)


def test_medians_are_written_as_json() -> None:
    (found,) = medians_of([run(RunId(0, 0, 3), [0.1])])
    written = json.loads(json.dumps(found.to_json()))
    assert written["load"]["rate_per_s"] == 1
    assert written["step"] == 3
    assert set(written["latency"]) == {"mean_s", "p50_s", "p90_s", "p99_s"}
    assert written["ttft"] is None


def test_the_table_of_medians_names_what_went_wrong_and_leaves_out_what_no_load_has() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_medians(console, medians_of([run(RunId(0, 0), [0.1], ["shed"]), run(RunId(0, 1), [0.3])]))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert all(word in printed for word in ("1/s poisson", "200.0", "shed", "good/s"))
    assert all(word not in printed for word in ("TTFT", "timeouts", "errors"))
