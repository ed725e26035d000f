"""`raglane stages`: the latency report on the terminal, once or over and over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serve_app.cli.client import Client, Json
from serve_app.cli.exits import Failure
from serve_app.cli.options import JsonOption, UrlOption, server_url
from serve_app.cli.render import out, print_json

WATCH_WINDOW_S = 5.0
MAX_WINDOW_S = 60.0


def stages_command(
    url: UrlOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Report again and again until Ctrl-C.")] = False,
    window_s: Annotated[
        float | None,
        typer.Option(
            "--window-s",
            min=0,
            max=MAX_WINDOW_S,
            metavar="SECONDS",
            help=f"Watch for so long and report on that; 0 reports on everything since the start. "
            f"(default: 0, with --watch {WATCH_WINDOW_S:g})",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where requests spend their time, how busy each stage is, and which one to scale next."""
    if watch and as_json:
        raise Failure("--watch draws on the terminal, --json prints once.", "Leave one of them out.")
    seconds = window_s if window_s is not None else WATCH_WINDOW_S if watch else 0.0
    with Client(server_url(url)) as client:
        if as_json:
            print_json(client.stages(seconds))
        elif watch:
            with Live(Text(f"watching {client.url} for {seconds:g} s"), console=out, auto_refresh=False) as live:
                while True:
                    live.update(render_stages(client.stages(seconds)), refresh=True)
        else:
            out.print(render_stages(client.stages(seconds)))


def render_stages(report: Json) -> Group:
    """The report as tables: stages and their branches, deployments, nodes that did not answer, the bottleneck."""
    parts: list[Table | Text] = [
        Text(f"the last {float(report['window_s']):.1f} s; count is since the start", style="dim"),
        _stage_table(report["stages"]),
        Text(),
        _table("deployment", _DEPLOYMENT_COLUMNS, report["deployments"], lambda one: str(one["deployment"])),
    ]
    for node in report["nodes"]:
        if node["error"]:
            parts.append(Text(f"node {node['address']} did not answer: {node['error']}", style="yellow"))
    bottleneck = report["bottleneck"]
    verdict = f"{bottleneck['stage']}: {bottleneck['reason']}" if bottleneck else "nothing was asked"
    saturated = bool(bottleneck and bottleneck["saturated"])
    parts += [Text(), Text.assemble(("bottleneck  ", "bold"), (verdict, "yellow" if saturated else ""))]
    return Group(*parts)


def _milliseconds(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{row[key] * 1000:.1f}" if row["rate_per_s"] else ""


def _share(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "" if row.get(key) is None or not row.get("rate_per_s", 1.0) else f"{row[key]:.0%}"


def _number(key: str, form: str = ".1f") -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "" if row.get(key) is None else format(row[key], form)


_Columns = Mapping[str, Callable[[Mapping[str, Any]], str]]

_CALL_COLUMNS: _Columns = {
    "count": _number("count", "d"),
    "per s": _number("rate_per_s"),
    "mean ms": _milliseconds("mean_s"),
    "p50": _milliseconds("p50_s"),
    "p90": _milliseconds("p90_s"),
    "p99": _milliseconds("p99_s"),
}
_STAGE_COLUMNS: _Columns = {
    **_CALL_COLUMNS,
    "queue": _share("queue_share"),
    "wait": _share("batch_wait_share"),
    "compute": _share("compute_share"),
    "batch": _number("batch_size"),
    "busy": _share("utilisation"),
}
_DEPLOYMENT_COLUMNS: _Columns = {
    "replicas": _number("replicas", "d"),
    "busy": _share("utilisation"),
    "cores": _number("cpu", ".2f"),
    "rows a batch": _number("rows_per_batch"),
    "tokens per s": _number("tokens_per_s", ".0f"),
    "padding": _share("padding_share"),
}


def _stage_table(stages: Sequence[Json]) -> Table:
    table = _empty("stage", _STAGE_COLUMNS)
    for stage in stages:
        table.add_row(stage["stage"], *(cell(stage) for cell in _STAGE_COLUMNS.values()))
        if len(stage["branches"]) > 1:
            for branch in stage["branches"]:
                name = f"  {branch['branch'] or 'itself'}"
                table.add_row(name, *(cell(branch) for cell in _CALL_COLUMNS.values()), style="dim")
    return table


def _table(heading: str, columns: _Columns, rows: Sequence[Json], name: Callable[[Json], str]) -> Table:
    table = _empty(heading, columns)
    for row in rows:
        table.add_row(name(row), *(cell(row) for cell in columns.values()))
    return table


def _empty(heading: str, columns: _Columns) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(heading, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
