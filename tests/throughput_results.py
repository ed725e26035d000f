"""Small result files of the throughput benchmark, made up: whatever reads such files is tested with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HARDWARE = {
    "platform": "Linux-6.1-x86_64",
    "cpu": "AMD EPYC 9R14",
    "num_cores": 2,
    "memory_bytes": 24 * 2**30,
    "gpus": [],
}
STAGES = ("parse", "embed", "search vector", "rerank", "generate")
GOODPUT = {
    "slo": {"request_p99_s": 3.0, "ttft_s": 0.3, "itl_s": 0.1},
    "good": 80,
    "good_share": 0.8,
    "good_per_s": 9.5,
    "within": {"request_p99_s": 0.97, "ttft_s": 0.8, "itl_s": 1.0},
    "met": False,
}


def closed(clients: int, **changes: Any) -> dict[str, Any]:
    return {"kind": "closed", "clients": clients, "with_ingest": True, **changes}


def offered(rate_per_s: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "open",
        "rate_per_s": rate_per_s,
        "arrivals": "poisson",
        "max_in_flight": 512,
        "with_ingest": True,
        **changes,
    }


def distribution(p50_s: float) -> dict[str, Any]:
    return {
        "count": 100,
        "mean_s": p50_s * 1.1,
        "p50_s": p50_s,
        "p90_s": p50_s * 2,
        "p99_s": p50_s * 3,
        "max_s": p50_s * 4,
    }


def sample(**changes: Any) -> dict[str, Any]:
    timing = {
        "stage": "embed",
        "total_s": 0.02,
        "queue_s": 0.01,
        "batch_wait_s": 0.0,
        "compute_s": 0.01,
        "batch_size": 1,
    }
    whole = {"intended_start_s": 1.0, "start_s": 1.0, "latency_s": 0.1, "status": 200, "error_kind": None}
    return {**whole, "ttft_s": None, "inter_token_s": [], "degraded": [], "timings": [timing], **changes}


def summary(p50_s: float | None, requests_per_s: float, **changes: Any) -> dict[str, Any]:
    return {
        "num_requests": 100,
        "num_succeeded": 0 if p50_s is None else 100,
        "num_failed": 100 if p50_s is None else 0,
        "shed": 0,
        "timeouts": 0,
        "requests_per_s": requests_per_s,
        "offered_per_s": requests_per_s,
        "errors": {},
        "error_examples": {},
        "statuses": {"200": 100},
        "degraded": {},
        "latency": None if p50_s is None else distribution(p50_s),
        "start_delay": distribution(0.001),
        "ttft": None,
        "inter_token": None,
        "goodput": None,
        **changes,
    }


def stage_totals(stage: str, p50_s: float, batch_size: float) -> dict[str, Any]:
    mean_s = p50_s * 1.1
    return {
        "stage": stage,
        "total": distribution(p50_s),
        "mean_queue_s": mean_s * 0.5,
        "mean_batch_wait_s": mean_s * 0.2,
        "mean_compute_s": mean_s * 0.3,
        "queue_share": 0.5,
        "batch_wait_share": 0.2,
        "compute_share": 0.3,
        "mean_batch_size": batch_size,
    }


def stage_medians(stage: str, p50_s: float, batch_size: float) -> dict[str, Any]:
    totals = stage_totals(stage, p50_s, batch_size)
    shares = ("queue_share", "batch_wait_share", "compute_share", "mean_batch_size")
    return {
        "stage": stage,
        **{name: totals["total"][name] for name in ("mean_s", "p50_s", "p99_s")},
        **{name: totals[name] for name in shares},
    }


def measured(
    load: Mapping[str, Any],
    p50_s: float | None,
    requests_per_s: float,
    *,
    step: int | None = None,
    repeats: int = 1,
    stages: Sequence[str] = STAGES,
    run: Mapping[str, Any] | None = None,
    samples: Sequence[Mapping[str, Any]] | None = None,
    **summary_changes: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One load as the runs of its repeats and as their medians; the first stage never batches, the others do."""
    numbers = summary(p50_s, requests_per_s, **summary_changes)
    by_stage = [
        (name, (p50_s or 0.0) / (index + 2), 1.0 if index == 0 else requests_per_s / 10 + index)
        for index, name in enumerate(stages if p50_s is not None else ())
    ]
    runs = [
        {
            "load": dict(load),
            "step": step,
            "probe": False,
            "repeat": repeat,
            "seed": [1, step or 0, repeat],
            "window": {"start_s": 1.0, "end_s": 11.0},
            "client_cpu_share": 0.1,
            "summary": numbers,
            "stages": [stage_totals(*stage) for stage in by_stage],
            "ingest": None,
            "server_stages": None,
            "stopped": None,
            "samples": [sample()] if samples is None else list(samples),
            **(run or {}),
        }
        for repeat in range(repeats)
    ]
    goodput = numbers["goodput"]
    medians = {
        "load": dict(load),
        "step": step,
        "repeats": repeats,
        "requests_per_s": requests_per_s,
        "good_per_s": None if goodput is None else goodput["good_per_s"],
        "latency": numbers["latency"],
        "ttft": numbers["ttft"],
        "inter_token": numbers["inter_token"],
        **{name: numbers[name] for name in ("num_failed", "shed", "timeouts", "errors")},
        "stages": [stage_medians(*stage) for stage in by_stage],
    }
    return runs, medians


def result(
    *loads: tuple[list[dict[str, Any]], dict[str, Any]], name: str = "docs_closed", **changes: Any
) -> dict[str, Any]:
    """A whole result file of what `measured` returns."""
    return {
        "schema_version": 2,
        "command": f"python -m benchmarks.run benchmarks/experiments/{name}.yaml",
        "experiment": {"name": name, "seed": 1},
        "seed": 1,
        "url": "http://127.0.0.1:8000",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "versions": {"python": "3.11.9", "raglane": "0.1.0", "ray": "2.60.0", "torch": "2.13.0", "lancedb": "0.40.0"},
        "hardware": HARDWARE,
        "started_at": "2026-01-02T03:04:05+00:00",
        "loads": [run for runs, _ in loads for run in runs],
        "medians": [medians for _, medians in loads],
        "saturation": [],
        **changes,
    }


def closed_result(**changes: Any) -> dict[str, Any]:
    """Four closed loads, whose latency bends upwards at 16 clients, each run twice."""
    return result(
        measured(closed(1), 0.08, 12.0, repeats=2),
        measured(closed(8), 0.2, 38.0, repeats=2),
        measured(closed(16), 0.35, 45.0, repeats=2),
        measured(closed(64), 1.4, 46.0, repeats=2),
        **changes,
    )


def saturation(**changes: Any) -> dict[str, Any]:
    """What a search found that ended between 20 and 40 requests/s."""
    return {
        "load": {"kind": "saturation", "start_rate_per_s": 10.0, "max_rate_per_s": 100.0, "with_ingest": True},
        "repeat": 0,
        "max_rate_per_s": 20.0,
        "limit": "40 requests/s: 82 of 100 requests answered in 10.0 s",
        "probes": [
            {"rate_per_s": 10.0, "passed": True, "reason": "sustained", "requests_per_s": 10.0, "p99_s": 0.3},
            {"rate_per_s": 20.0, "passed": True, "reason": "sustained", "requests_per_s": 19.8, "p99_s": 0.4},
            {"rate_per_s": 40.0, "passed": False, "reason": "fell behind", "requests_per_s": 33.0, "p99_s": None},
        ],
        **changes,
    }


def saturation_result(**changes: Any) -> dict[str, Any]:
    """A file of nothing but the search of `saturation`: its probes are runs, and there are no medians."""
    probes = [
        {**run, "step": step, "probe": True}
        for step, rate_per_s in enumerate((10.0, 20.0, 40.0))
        for run in measured(offered(rate_per_s), 0.1 * 2**step, rate_per_s)[0]
    ]
    whole = {"loads": probes, "medians": [], "saturation": [saturation()], **changes}
    return result(**{"name": "docs_saturation", **whole})


def searched_three_times() -> dict[str, Any]:
    """A file of three searches, each of which probed 10 requests/s; no median is that of the first or the last."""
    found = ((0.1, 9.0, 16.0), (0.3, 8.0, 20.0), (0.7, 5.0, 40.0))
    probes = [
        {**run, "repeat": repeat, "step": 0, "probe": True}
        for repeat, (p50_s, requests_per_s, _) in enumerate(found)
        for run in measured(
            offered(10.0), p50_s, requests_per_s, goodput={**GOODPUT, "good_per_s": requests_per_s - 1}
        )[0]
    ]
    searches = [saturation(repeat=repeat, max_rate_per_s=highest) for repeat, (_, _, highest) in enumerate(found)]
    return saturation_result(loads=probes, saturation=searches)


def write(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
