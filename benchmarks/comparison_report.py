"""What a comparison shows on the console: a line for each run, and a table for each load when all are done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Summary
from benchmarks.report import BUSY_CLIENT_SHARE


def print_run(console: Console, name: str, clients: int, summary: Summary, client_cpu_share: float) -> None:
    """Print one run of one load in a line, and what went wrong in it."""
    p50 = "–" if summary.latency is None else f"{1000 * summary.latency.p50_s:.1f} ms"
    console.print(f"{name}, {clients} clients: {summary.requests_per_s:.1f} requests/s, p50 {p50}", highlight=False)
    for kind, count in summary.errors.items():
        console.print(f"  {kind} {count} times, first: {summary.error_examples[kind]}", style="red", markup=False)
    for stage, count in summary.degraded.items():
        console.print(f"  {count} answers did without {stage}", style="yellow", markup=False)
    if client_cpu_share > BUSY_CLIENT_SHARE:
        console.print(f"  the load generator itself used {client_cpu_share:.0%} of a core", style="yellow")


def print_result(console: Console, result: Mapping[str, Any]) -> None:
    """Print a table for each load of a result file: medians, and the first system's ratios to each of the others."""
    for compared in result["loads"]:
        console.print(_table(compared))
    for name, why in result["skipped"].items():
        console.print(f"left out: {name} ({why})", style="yellow", markup=False, highlight=False)


def _table(compared: Mapping[str, Any]) -> Table:
    first = next(iter(compared["systems"]))
    title = f"{compared['load']['clients']} clients; medians, and {first} ÷ the others (least … greatest of the rounds)"
    table = Table(title=title, title_justify="left")
    table.add_column("system")
    for column in ("requests/s", "p50 ms", "p99 ms", "failed", "÷ requests/s", "÷ p50"):
        table.add_column(column, justify="right")
    for name, measures in compared["systems"].items():
        ratios = compared["first_to"].get(name, {})
        table.add_row(
            name,
            _number(measures["requests_per_s"]["median"]),
            _number(measures["p50_s"]["median"], 1000),
            _number(measures["p99_s"]["median"], 1000),
            str(compared["num_failed"][name]),
            _ratio(ratios.get("requests_per_s")),
            _ratio(ratios.get("p50_s")),
        )
    return table


def _number(value: float | None, factor: float = 1) -> str:
    return "–" if value is None else f"{factor * value:.1f}"


def _ratio(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio['of_medians']:.2f} ({ratio['least']:.2f} … {ratio['greatest']:.2f})"
