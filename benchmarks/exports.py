"""`python -m benchmarks.exports RESULT.json`: a result file as JSON lines and as CSV, for other programs."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.records import ErrorKind
from benchmarks.result_parts import Distribution, Run, Summary
from benchmarks.run import EXIT_OK, EXIT_USAGE
from benchmarks.throughput_result import ResultFileError, ThroughputResult, read_result

ERROR_KINDS: tuple[str, ...] = get_args(ErrorKind)
DISTRIBUTIONS = ("latency", "start_delay", "ttft", "inter_token")
MOMENTS = ("count", "mean_s", "p50_s", "p90_s", "p99_s", "max_s")
COUNTS = ("num_requests", "num_succeeded", "num_failed", "shed", "timeouts")
GOODPUT = ("good", "good_share", "good_per_s", "met")
INGEST = ("documents", "batches", "documents_per_s")
SHARES = ("queue_share", "batch_wait_share", "compute_share", "mean_batch_size")
STAGE_MEANS = ("mean_queue_s", "mean_batch_wait_s", "mean_compute_s")

# Which run a row belongs to.
RUN_KEY = ("experiment", "kind", "clients", "rate_per_s", "arrivals", "trace", "speed", "step", "probe", "repeat")
RUN_COLUMNS = (
    *RUN_KEY,
    "window_start_s",
    "window_end_s",
    "client_cpu_share",
    *COUNTS,
    "requests_per_s",
    "offered_per_s",
    *(f"errors_{kind}" for kind in ERROR_KINDS),
    "errors_other",
    "degraded",
    *(f"{name}_{moment}" for name in DISTRIBUTIONS for moment in MOMENTS),
    *(f"goodput_{name}" for name in GOODPUT),
    *(f"ingest_{name}" for name in INGEST),
    "ingest_errors",
)
STAGE_COLUMNS = (*RUN_KEY, "stage", *MOMENTS, *STAGE_MEANS, *SHARES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        result = read_result(options.result)
    except ResultFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    for path in export(result, options.out or options.result.parent):
        print(path)
    return EXIT_OK


def export(result: ThroughputResult, folder: Path) -> tuple[Path, Path, Path]:
    """Write STEM.samples.jsonl, STEM.runs.csv and STEM.stages.csv into the folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    samples, runs, stages = (folder / f"{result.stem}.{end}" for end in ("samples.jsonl", "runs.csv", "stages.csv"))
    with samples.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in sample_rows(result))
    _write_csv(runs, RUN_COLUMNS, run_rows(result))
    _write_csv(stages, STAGE_COLUMNS, stage_rows(result))
    return samples, runs, stages


def sample_rows(result: ThroughputResult) -> Iterator[dict[str, Any]]:
    """Yield every request of the file, those of the warm-up included, with the run that it belongs to."""
    for run in result.loads:
        belongs = {
            "experiment": result.name,
            "load": run.load.model_dump(exclude_none=True),
            "step": run.step,
            "probe": run.probe,
            "repeat": run.repeat,
        }
        for sample in run.samples:
            yield {**belongs, **sample}


def run_rows(result: ThroughputResult) -> Iterator[dict[str, Any]]:
    """Yield a row of RUN_COLUMNS for each run, in the file's order."""
    for run in result.loads:
        summary = run.summary
        yield {
            **_run_key(result, run),
            "window_start_s": run.window.start_s,
            "window_end_s": run.window.end_s,
            "client_cpu_share": run.client_cpu_share,
            **{name: getattr(summary, name) for name in (*COUNTS, "requests_per_s", "offered_per_s")},
            **_errors(summary),
            "degraded": None if summary.degraded is None else json.dumps(summary.degraded),
            **{key: value for name in DISTRIBUTIONS for key, value in _moments(summary, name).items()},
            **{f"goodput_{name}": getattr(summary.goodput, name, None) for name in GOODPUT},
            **{f"ingest_{name}": getattr(run.ingest, name, None) for name in INGEST},
            "ingest_errors": None if run.ingest is None else sum(run.ingest.errors.values()),
        }


def stage_rows(result: ThroughputResult) -> Iterator[dict[str, Any]]:
    """Yield a row of STAGE_COLUMNS for each stage of each run, in the file's order."""
    for run in result.loads:
        for stage in run.stages:
            yield {
                **_run_key(result, run),
                "stage": stage.stage,
                **{moment: getattr(stage.total, moment) for moment in MOMENTS},
                **{name: getattr(stage, name) for name in (*STAGE_MEANS, *SHARES)},
            }


def _run_key(result: ThroughputResult, run: Run) -> dict[str, Any]:
    load = {name: getattr(run.load, name) for name in ("kind", "clients", "rate_per_s", "arrivals", "trace", "speed")}
    return {"experiment": result.name, **load, "step": run.step, "probe": run.probe, "repeat": run.repeat}


def _errors(summary: Summary) -> dict[str, int]:
    counts = {f"errors_{kind}": summary.errors.get(kind, 0) for kind in ERROR_KINDS}
    other = sum(count for kind, count in summary.errors.items() if kind not in ERROR_KINDS)
    return {**counts, "errors_other": other}


def _moments(summary: Summary, name: str) -> dict[str, float | None]:
    values: Distribution | None = getattr(summary, name)
    return {f"{name}_{moment}": getattr(values, moment, None) for moment in MOMENTS}


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows with a header; None is written as nothing, and a truth value as `true` or `false`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports", description=__doc__)
    parser.add_argument("result", type=Path, help="a result file of benchmarks.run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: the result's own)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
