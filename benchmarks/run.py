"""`python -m benchmarks.run EXPERIMENT`: run the loads of one experiment file and write one result file."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import environment, report, result_file
from benchmarks.connections import is_loopback
from benchmarks.experiment import ExperimentError, read_experiment
from benchmarks.experiment_run import ExperimentRun
from benchmarks.medians import medians_of

EXIT_OK = 0
EXIT_NOTHING_SUCCEEDED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    try:
        experiment = read_experiment(options.experiment, _overrides(options))
        refuse_remote(options.url, options.allow_remote)
        result = {
            "schema_version": result_file.SCHEMA_VERSION,
            "command": shlex.join(["python", "-m", "benchmarks.run", *arguments]),
            "experiment": experiment.model_dump(mode="json"),
            "seed": experiment.seed,
            "url": options.url,
            **environment.describe(),
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **_measure(ExperimentRun(experiment, options.url, console), console),
        }
    except ExperimentError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    out = options.out or result_file.default_path(experiment.name)
    result_file.write(out, result)
    console.print(f"\nresult: {out}", markup=False, highlight=False)
    succeeded = sum(load["summary"]["num_succeeded"] for load in result["loads"])
    return EXIT_OK if succeeded else EXIT_NOTHING_SUCCEEDED


def refuse_remote(url: str, allow_remote: bool) -> None:
    """Raise ExperimentError for a server elsewhere, unless it is allowed: a load on another's machine is an attack."""
    if not is_loopback(url) and not allow_remote:
        raise ExperimentError(f"{url} is not on this machine; pass --allow-remote to load it all the same")


def _measure(experiment: ExperimentRun, console: Console) -> dict[str, Any]:
    """Run the experiment and return the result's `loads`, `medians` and, where there was a search, `saturation`."""
    outcome = asyncio.run(experiment.run())
    medians = medians_of(outcome.runs)
    if len(outcome.runs) > 1 and medians:
        report.print_medians(console, medians)
    result: dict[str, Any] = {
        "loads": [run.to_json() for run in outcome.runs],
        "medians": [one.to_json() for one in medians],
    }
    if outcome.saturations:
        result["saturation"] = [found.to_json() for found in outcome.saturations]
    return result


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("experiment", type=Path, help="a file of benchmarks/experiments")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--queries", metavar="FILE", help="JSONL with _id and text, instead of the experiment's own")
    parser.add_argument("--duration-s", metavar="S", type=float, help="seconds to measure, instead of the experiment's")
    parser.add_argument("--repeats", metavar="N", type=int, help="runs of each load, instead of the experiment's")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/NAME-UTC.json)")
    parser.add_argument("--allow-remote", action="store_true", help="allow a server that is not on this machine")
    return parser.parse_args(arguments)


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line puts in place of the experiment file's own keys."""
    given = {"queries": options.queries, "duration_s": options.duration_s, "repeats": options.repeats}
    return {key: value for key, value in given.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
