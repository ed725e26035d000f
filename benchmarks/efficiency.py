"""`python -m benchmarks.efficiency [PLAN]`: how much of its bottleneck's engine a server uses at saturation.

Efficiency is the items a second that the server gets through at its best number of clients, by what the bottleneck
stage's engine does by itself on the same items, in its best batches and on the whole machine. 1.0 is a server that
costs nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.command import end_as_interrupted, record
from benchmarks.efficiency_plan import read_plan
from benchmarks.efficiency_run import EfficiencyRun
from benchmarks.experiment import ExperimentError
from benchmarks.run import EXIT_USAGE

PLAN = Path(__file__).resolve().parent / "experiments" / "efficiency.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    try:
        plan = read_plan(options.plan, _overrides(options))
    except ExperimentError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return EXIT_USAGE

    def note(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False)

    return record(
        "benchmarks.efficiency",
        arguments,
        console,
        lambda: EfficiencyRun(plan, note).run(),
        url=plan.server.url,
        allow_remote=False,
        out=options.out,
        default_name=plan.name,
        show=lambda result: console.print(_table(result)),
    )


def _table(result: Mapping[str, Any]) -> Table:
    title = "items/s, medians: server (clients), engine alone (batch tokens); rounds: least … greatest efficiency"
    caption = "* the least or the greatest that was tried: one beyond it may be better"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("stage")
    for column in ("server", "alone", "efficiency", "rounds", "goal"):
        table.add_column(column, justify="right")
    for name, one in result["stages"].items():
        ratio, goal = one["ratio"], result["efficiency"]["stages"][name]["goal"]
        table.add_row(
            name,
            f"{one['server_items_per_s']:.1f} ({_setting(one, 'best_clients')})",
            f"{one['engine_items_per_s']:.1f} ({_setting(one, 'best_max_batch_tokens')})",
            f"{ratio['of_medians']:.2f}",
            f"{ratio['least']:.2f} … {ratio['greatest']:.2f}",
            "–" if goal is None else f"{goal:.2f} {'met' if one['goal_met'] else 'missed'}",
        )
    return table


def _setting(one: Mapping[str, Any], name: str) -> str:
    return f"{one[name]}{'*' if one[f'{name}_at_edge'] else ''}"


def _overrides(options: argparse.Namespace) -> dict[str, object]:
    """What the command line puts in place of the file's own keys."""
    given = {"queries": options.queries, "rounds": options.rounds, "candidates": options.candidates}
    return {key: value for key, value in given.items() if value is not None}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.efficiency", description=__doc__)
    parser.add_argument("plan", type=Path, nargs="?", default=PLAN, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds, instead of the file's")
    parser.add_argument("--candidates", type=int, metavar="N", help="passages that a search reranks, instead of those")
    parser.add_argument("--queries", metavar="FILE", help="JSONL with _id and text, instead of the file's own")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/NAME-UTC.json)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    # A benchmark that is told to end must not leave its server behind.
    end_as_interrupted()
    sys.exit(main())
