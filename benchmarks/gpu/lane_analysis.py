"""From exchanges to figures: rates, goodput, and where the time to the first token went. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.experiment import Slo
from benchmarks.goodput import measure_goodput
from benchmarks.gpu.exchange import Exchange
from benchmarks.gpu.loop import SteadyWindow
from benchmarks.measure import distribution

BETWEEN = "between stages"
ENGINE_QUEUE = "generate: queue"
FIRST_TOKEN = "generate: first token and transport"


def summarise(exchanges: Sequence[Exchange], num_clients: int, slo: Slo) -> dict[str, Any]:
    """The figures of one load.

    Rates are of what ended in the steady window, times and goodput of what began in it; the counts of requests,
    failures and tokens are of the whole load. An answer that had to do without a stage counts as none: it made less
    work.
    """
    samples = [exchange.sample for exchange in exchanges]
    window = SteadyWindow.of(samples, num_clients)
    within = [exchanges[index] for index in window.ended_within(samples) if exchanges[index].is_whole]
    whole = [exchange for exchange in exchanges if exchange.is_whole]
    started = begun_steadily(exchanges, num_clients)
    timed = [exchange for exchange in started if exchange.is_whole]
    goodput = measure_goodput(
        [each.sample for each in started], [each.sample for each in within], window.length_s, slo, stream=True
    )
    return {
        "num_requests": len(exchanges),
        "num_whole": len(whole),
        "num_timed": len(timed),
        "errors": dict(Counter(sample.error_kind for sample in samples if sample.error_kind is not None)),
        "error_examples": sorted({sample.error for sample in samples if sample.error})[:3],
        "degraded": dict(Counter(stage for sample in samples for stage in sample.degraded)),
        "window": asdict(window),
        "requests_per_s": _rate(len(within), window),
        "completion_tokens_per_s": _rate(sum(each.completion_tokens for each in within), window),
        "prompt_tokens_per_s": _rate(sum(each.prompt_tokens for each in within), window),
        "mean_prompt_tokens": _mean([each.prompt_tokens for each in whole]),
        "mean_completion_tokens": _mean([each.completion_tokens for each in whole]),
        "latency": _distribution([each.sample.latency_s for each in timed]),
        "ttft": _distribution([each.sample.ttft_s for each in timed if each.sample.ttft_s is not None]),
        "inter_token": _distribution([gap for each in timed for gap in each.sample.inter_token_s]),
        "goodput": asdict(goodput),
    }


def begun_steadily(exchanges: Sequence[Exchange], num_clients: int) -> list[Exchange]:
    """Those that began in the load's steady window. Raises ValueError where it has none."""
    samples = [exchange.sample for exchange in exchanges]
    return [exchanges[index] for index in SteadyWindow.of(samples, num_clients).started_within(samples)]


def ttft_by_stage(exchanges: Sequence[Exchange], num_clients: int) -> dict[str, float]:
    """Seconds of the mean time to the first token by what was waited for; they add up to it.

    Of the whole answers to what began in the steady window, as `ttft` is.
    """
    totals: defaultdict[str, float] = defaultdict(float)
    steady = begun_steadily(exchanges, num_clients)
    counted = [each for each in steady if each.is_whole and each.sample.ttft_s is not None]
    for exchange in counted:
        for name, seconds in first_token_path(exchange.rows, exchange.sample.ttft_s or 0.0).items():
            totals[name] += seconds
    return {name: seconds / len(counted) for name, seconds in totals.items()}


def first_token_path(rows: Sequence[Mapping[str, Any]], ttft_s: float) -> dict[str, float]:
    """What one request waited for until its first token came, `ttft_s` after it was sent.

    Until `generate` begins, each moment belongs to the stage that is at work and, of several side by side, to the one
    that ends last, since the others were not waited for. From then on, the engine's own queue is set apart; what is
    left is reading the prompt, the first token, and the way of the request and the token through HTTP.
    """
    generate = next(row for row in rows if row["stage"] == "generate")
    begin_s = min(float(generate["start_s"]), ttft_s)
    spans = [
        (float(row["start_s"]), float(row["start_s"]) + float(row["total_s"]), str(row["stage"]))
        for row in rows
        if row is not generate
    ]
    marks = sorted({0.0, begin_s, *(min(mark, begin_s) for start, end, _ in spans for mark in (start, end))})
    path: defaultdict[str, float] = defaultdict(float)
    for start_s, end_s in pairwise(marks):
        running = [(end, stage) for start, end, stage in spans if start <= start_s and end >= end_s]
        path[max(running)[1] if running else BETWEEN] += end_s - start_s
    queue_s = min(float(generate["batch_wait_s"]), ttft_s - begin_s)
    return {**path, ENGINE_QUEUE: queue_s, FIRST_TOKEN: ttft_s - begin_s - queue_s}


def compare(loads: Sequence[Mapping[str, Any]], target: float) -> dict[str, Any]:
    """The lane's best rate over all loads by that of the generator alone, and the best goodput within the SLO.

    `loads` have the summaries `lane` and `generator_alone`.
    """
    best = {name: max(load[name]["requests_per_s"] for load in loads) for name in ("lane", "generator_alone")}
    ratio = best["lane"] / best["generator_alone"] if best["generator_alone"] else 0.0
    within_slo = [load["lane"]["requests_per_s"] for load in loads if load["lane"]["goodput"]["met"]]
    return {
        "best_requests_per_s": best,
        "ratio": ratio,
        "target": target,
        "target_met": ratio >= target,
        "requests_per_s_within_slo": max(within_slo, default=0.0),
        "best_good_per_s": max(load["lane"]["goodput"]["good_per_s"] for load in loads),
    }


def share_of_same_prompts(lane: Sequence[Exchange], alone: Sequence[Exchange]) -> float:
    """The share of whole answers whose rebuilt prompt has as many tokens as the server says that its prompt had."""
    pairs = [(left, right) for left, right in zip(lane, alone, strict=True) if left.is_whole]
    return sum(left.prompt_tokens == right.prompt_tokens for left, right in pairs) / max(1, len(pairs))


def _rate(count: int, window: SteadyWindow) -> float:
    return count / window.length_s if window.length_s > 0 else 0.0


def _mean(values: Sequence[int]) -> float | None:
    return float(np.mean(values)) if values else None


def _distribution(values: Sequence[float]) -> dict[str, Any] | None:
    described = distribution(values)
    return None if described is None else asdict(described)
