"""What a benchmark shows on the console: progress while it runs, tables when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.goodput import Goodput
from benchmarks.ingest_load import IngestSummary
from benchmarks.load_run import LoadRun, label_load
from benchmarks.measure import Distribution, StageSummary, Summary
from benchmarks.medians import Medians
from benchmarks.saturation import Saturation

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


class LoadProgress:
    """The bar of one load, over the time until it starts no request any more."""

    def __init__(self, progress: Progress, title: str, horizon_s: float) -> None:
        self._progress = progress
        self._horizon_s = horizon_s
        self._task = progress.add_task(title, total=horizon_s, note="")

    def show(self, elapsed_s: float, num_answered: int) -> None:
        """Move the bar to `elapsed_s` seconds into the load."""
        note = f"{num_answered} answered" if elapsed_s < self._horizon_s else "waiting for the last answers"
        self._progress.update(self._task, completed=min(elapsed_s, self._horizon_s), note=note)


def print_run(console: Console, title: str, run: LoadRun) -> None:
    """Print one run of one load: its rates, latencies, errors and stages."""
    summary = run.summary
    console.print(f"\n[bold]{title}[/bold]", highlight=False)
    console.print(
        f"{summary.num_requests} requests, {summary.num_succeeded} succeeded, {_failures(summary)}; "
        f"{summary.requests_per_s:.1f} requests/s answered, {summary.offered_per_s:.1f} offered",
        highlight=False,
    )
    if summary.goodput is not None:
        _print_goodput(console, summary.goodput)
    console.print(_latency_table(summary))
    if run.stages:
        console.print(_stage_table(run.stages))
    if run.ingest is not None:
        _print_ingest(console, run.ingest)
    _print_troubles(console, summary, run.client_cpu_share)
    if run.stopped is not None:
        console.print(f"stopped early: {run.stopped}", markup=False, highlight=False)


def print_saturation(console: Console, title: str, found: Saturation) -> None:
    """Print one search: the rates in the order in which they were tried, and what it came to."""
    table = Table(title=f"{title}: probes", title_justify="left")
    for column in ("offered/s", "answered/s", "p99, milliseconds"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for probe in found.probes:
        p99 = "" if probe.p99_s is None else _milliseconds(probe.p99_s)
        table.add_row(f"{probe.rate_per_s:.1f}", f"{probe.requests_per_s:.1f}", p99, probe.reason)
    console.print(table)
    console.print(f"[bold]{found.max_rate_per_s:.1f} requests/s sustained[/bold]; ", end="", highlight=False)
    console.print(found.limit, markup=False, highlight=False)


def print_medians(console: Console, medians: Sequence[Medians]) -> None:
    """Print a row for each load or step of a ramp, over its repeats. A column that no load fills is left out."""
    table = Table(title="medians over the repeats, latencies in milliseconds", title_justify="left")
    table.add_column("load")
    columns: dict[str, Callable[[Medians], str]] = {
        "runs": lambda load: str(load.repeats),
        "ok/s": lambda load: f"{load.requests_per_s:.1f}",
        "good/s": lambda load: "" if load.good_per_s is None else f"{load.good_per_s:.1f}",
        "p50": lambda load: "" if load.latency is None else _milliseconds(load.latency.p50_s),
        "p90": lambda load: "" if load.latency is None else _milliseconds(load.latency.p90_s),
        "p99": lambda load: "" if load.latency is None else _milliseconds(load.latency.p99_s),
        "TTFT p50": lambda load: "" if load.ttft is None else _milliseconds(load.ttft.p50_s),
        "ITL p50": lambda load: "" if load.inter_token is None else _milliseconds(load.inter_token.p50_s),
        "shed": lambda load: _count(load.shed),
        "timeouts": lambda load: _count(load.timeouts),
        "errors": lambda load: _count(load.num_failed - load.shed - load.timeouts),
    }
    shown = {name: [cell(load) for load in medians] for name, cell in columns.items()}
    shown = {name: cells for name, cells in shown.items() if any(cells)}
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for load, cells in zip(medians, zip(*shown.values(), strict=True), strict=True):
        table.add_row(label_load(load.load), *cells)
    console.print(table)


def _count(number: int) -> str:
    return str(number) if number else ""


def _failures(summary: Summary) -> str:
    others = summary.num_failed - summary.shed - summary.timeouts
    return f"{summary.num_failed} failed ({summary.shed} shed, {summary.timeouts} timeouts, {others} other errors)"


def _print_goodput(console: Console, goodput: Goodput) -> None:
    within = ", ".join(f"{name} {share:.1%}" for name, share in goodput.within.items())
    verdict = "[green]met[/green]" if goodput.met else "[red]missed[/red]"
    console.print(
        f"{goodput.good_per_s:.1f} good requests/s; {goodput.good_share:.1%} of the requests good; SLO {verdict}"
        f" (within {within})",
        highlight=False,
    )


def _print_ingest(console: Console, ingest: IngestSummary) -> None:
    errors = ", ".join(f"{kind} {count} times" for kind, count in ingest.errors.items())
    console.print(
        f"meanwhile {ingest.documents} documents written in {ingest.batches} batches, "
        f"{ingest.documents_per_s:.1f} documents/s{f'; [red]failed[/red]: {errors}' if errors else ''}",
        highlight=False,
    )


def _print_troubles(console: Console, summary: Summary, client_cpu: float) -> None:
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
