"""`python -m benchmarks.memory --pid PID --seconds S`: the resident memory of a process tree over time."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import linear_regression

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import result_file
from benchmarks.command import provenance
from benchmarks.run import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE

MIB = 2**20

EXIT_ENDED_EARLY = 1


@dataclass(frozen=True, slots=True)
class MemorySample:
    """The sum over a process and its descendants; pages that they share count in each of them."""

    at_s: float
    resident_bytes: int
    num_processes: int


@dataclass(frozen=True, slots=True)
class MemorySummary:
    """`slope_bytes_per_min` is that of the least-squares line through all samples; None from a single one."""

    first_bytes: int
    last_bytes: int
    min_bytes: int
    max_bytes: int
    slope_bytes_per_min: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(stderr=True)
    made = provenance("benchmarks.memory", arguments)
    samples: list[MemorySample] = []
    try:
        watch(psutil.Process(options.pid), options.seconds, options.every, samples.append)
        code = EXIT_OK
    except psutil.Error as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        code = EXIT_ENDED_EARLY
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    if not samples:
        return EXIT_USAGE
    summary = summarise(samples)
    _print_table(console, f"process {options.pid}: {len(samples)} samples", summary)
    measured = {"pid": options.pid, "summary": asdict(summary), "samples": [asdict(sample) for sample in samples]}
    result = {**made, **measured}
    if options.out:
        result_file.write(options.out, result)
        console.print(f"result: {options.out}", markup=False, highlight=False)
    else:
        print(json.dumps(result))
    return code


def watch(process: psutil.Process, seconds: float, every_s: float, take: Callable[[MemorySample], None]) -> None:
    """Give `take` a sample now and every `every_s`, for `seconds`. Raises psutil.Error once the process has ended."""
    started_s = time.monotonic()
    number = 0
    while (due_s := number * every_s) <= seconds:
        time.sleep(max(0.0, started_s + due_s - time.monotonic()))
        resident_bytes, num_processes = measure(process)
        take(MemorySample(time.monotonic() - started_s, resident_bytes, num_processes))
        number += 1


def measure(process: psutil.Process) -> tuple[int, int]:
    """Return the resident bytes of a process with its descendants, and how many they are. Raises psutil.Error."""
    resident_bytes, num_processes = process.memory_info().rss, 1
    for child in process.children(recursive=True):
        try:
            resident_bytes += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        num_processes += 1
    return resident_bytes, num_processes


def summarise(samples: Sequence[MemorySample]) -> MemorySummary:
    """Summarise at least one sample, in the order of their times."""
    sizes = [sample.resident_bytes for sample in samples]
    slope = linear_regression([sample.at_s / 60 for sample in samples], sizes).slope if len(samples) > 1 else None
    return MemorySummary(sizes[0], sizes[-1], min(sizes), max(sizes), slope)


def _print_table(console: Console, title: str, summary: MemorySummary) -> None:
    table = Table(title=f"{title}, MiB", title_justify="left")
    for column in ("first", "last", "min", "max", "per minute"):
        table.add_column(column, justify="right")
    sizes = (summary.first_bytes, summary.last_bytes, summary.min_bytes, summary.max_bytes)
    slope = "" if summary.slope_bytes_per_min is None else f"{summary.slope_bytes_per_min / MIB:+.2f}"
    table.add_row(*(f"{size / MIB:.1f}" for size in sizes), slope)
    console.print(table)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--pid", type=int, required=True, help="the process; its descendants count as well")
    parser.add_argument("--seconds", type=_positive, default=60.0, help="how long (default: %(default)g)")
    parser.add_argument("--every", type=_positive, default=5.0, help="seconds between samples (default: %(default)g)")
    parser.add_argument("--out", type=Path, help="file for the JSON (default: standard output)")
    return parser.parse_args(arguments)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


if __name__ == "__main__":
    sys.exit(main())
