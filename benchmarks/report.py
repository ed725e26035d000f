"""What a benchmark shows on the console: progress while it runs, tables when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.measure import Distribution, StageSummary, Summary

# From here on the load generator, a single-threaded process, may be what limits the throughput.
BUSY_CLIENT_SHARE = 0.8


def progress_bar(console: Console) -> Progress:
    """Return a bar whose tasks have a `note` field, shown behind it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def print_run(console: Console, title: str, summary: Summary, stages: list[StageSummary], client_cpu: float) -> None:
    """Print one run of one load: its rates, latencies, errors and stages."""
    console.print(f"\n[bold]{title}[/bold]", highlight=False)
    console.print(
        f"{summary.num_requests} requests, {summary.num_succeeded} succeeded, {summary.num_failed} failed; "
        f"{summary.requests_per_s:.1f} requests/s answered, {summary.offered_per_s:.1f} offered",
        highlight=False,
    )
    console.print(_latency_table(summary))
    if stages:
        console.print(_stage_table(stages))
    for kind, count in sorted(summary.errors.items(), key=lambda item: -item[1]):
        console.print(f"[red]{kind}[/red] {count} times, first: ", end="", highlight=False)
        console.print(summary.error_examples[kind], markup=False, highlight=False)
    for stage, count in summary.degraded.items():
        console.print(f"[yellow]degraded[/yellow]: {count} answers did without {stage}", highlight=False)
    if client_cpu > BUSY_CLIENT_SHARE:
        console.print(
            f"[yellow]The load generator itself used {client_cpu:.0%} of a core: "
            "the server may be faster than this shows.[/yellow]",
            highlight=False,
        )


def print_measures(console: Console, title: str, measures: Mapping[str, Mapping[str, float]]) -> None:
    """Print quality measures by name: a row for each way of searching."""
    table = Table(title=title, title_justify="left")
    table.add_column("search")
    for name in next(iter(measures.values()), {}):
        table.add_column(name, justify="right")
    for search, values in measures.items():
        table.add_row(search, *(f"{value:.4f}" for value in values.values()))
    console.print(table)


def _latency_table(summary: Summary) -> Table:
    table = Table(title="milliseconds", title_justify="left")
    table.add_column("")
    for column in ("mean", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="right")
    rows: tuple[tuple[str, Distribution | None], ...] = (
        ("latency", summary.latency),
        ("time to first token", summary.ttft),
        ("between tokens", summary.inter_token),
        ("sent late by", summary.start_delay),
    )
    for name, values in rows:
        if values is not None:
            moments = (values.mean_s, values.p50_s, values.p90_s, values.p99_s, values.max_s)
            table.add_row(name, *map(_milliseconds, moments))
    return table


def _stage_table(stages: list[StageSummary]) -> Table:
    table = Table(title="stages, milliseconds and shares of the stage's total", title_justify="left")
    table.add_column("stage")
    columns: dict[str, Callable[[StageSummary], str]] = {
        "count": lambda stage: str(stage.total.count),
        "mean": lambda stage: _milliseconds(stage.total.mean_s),
        "p50": lambda stage: _milliseconds(stage.total.p50_s),
        "p90": lambda stage: _milliseconds(stage.total.p90_s),
        "p99": lambda stage: _milliseconds(stage.total.p99_s),
        "queue": lambda stage: f"{stage.queue_share:.0%}",
        "batch wait": lambda stage: f"{stage.batch_wait_share:.0%}",
        "compute": lambda stage: f"{stage.compute_share:.0%}",
        "batch size": lambda stage: f"{stage.mean_batch_size:.1f}",
    }
    for name in columns:
        table.add_column(name, justify="right")
    for stage in stages:
        table.add_row(stage.stage, *(cell(stage) for cell in columns.values()))
    return table


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"
