"""`python -m benchmarks.standard`: the standard set on the local profile, in under 15 minutes; `make bench` runs it."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import exports, page, plots
from benchmarks.command import end_as_interrupted
from benchmarks.environment import REPOSITORY
from benchmarks.experiment import ExperimentError
from benchmarks.own_server import serving
from benchmarks.result_file import RESULTS
from benchmarks.run import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from benchmarks.standard_page import PageError, Part, write_section
from benchmarks.throughput_result import ResultFileError, read_result

TOTAL_S = 15 * 60.0
START_LIMIT_S = 110.0
# For drawing, and for stopping the server.
FINISH_S = 45.0
INTERRUPT_PATIENCE_S = 10.0

EXIT_FAILED = 1


@dataclass(frozen=True, slots=True)
class StandardExperiment:
    """One experiment of the set: its file, its heading, the seconds that it should take, what the docs show of it."""

    name: str
    title: str
    planned_s: float
    shown_plots: tuple[str, ...] = ()
    with_stages: bool = False

    @property
    def path(self) -> str:
        """The experiment file, from the repository's root."""
        return f"benchmarks/experiments/{self.name}.yaml"

    @property
    def shown_command(self) -> str:
        """What a reader types to run it alone."""
        return f"python -m benchmarks.run {self.path}"


STANDARD_SET = (
    StandardExperiment(
        "docs_closed",
        "Closed loop: users who ask again as soon as they are answered",
        planned_s=145,
        shown_plots=("latency", "stages", "batches"),
        with_stages=True,
    ),
    StandardExperiment("docs_ramp", "Open loop: rising rates", planned_s=150, shown_plots=("latency",)),
    StandardExperiment("docs_saturation", "Saturation: the highest rate that is sustained", planned_s=190),
    StandardExperiment("docs_stream", "Streamed answers: how many of them are good", planned_s=100),
    StandardExperiment("docs_mixed", "Answers while documents are written", planned_s=100),
    StandardExperiment("docs_replay", "A replayed trace, as it was and twice as fast", planned_s=45),
)


@dataclass(frozen=True, slots=True)
class Budget:
    """The time that the set may take. `end_s` is on the clock of `time.monotonic`."""

    end_s: float

    def left_s(self) -> float:
        return self.end_s - time.monotonic()

    def limit_s(self, later: Sequence[StandardExperiment]) -> float:
        """Return the seconds that an experiment may take now: all that is planned neither for `later` nor for the end.

        Raises ExperimentError if there are none.
        """
        limit_s = self.left_s() - FINISH_S - sum(experiment.planned_s for experiment in later)
        if limit_s <= 0:
            raise ExperimentError("the time of the set is used up")
        return limit_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console(stderr=True)
    end_as_interrupted()
    started_s = time.monotonic()
    console.print(f"standard set: {len(STANDARD_SET)} experiments, {_clock(TOTAL_S)} at most", highlight=False)
    try:
        run_set(options.url, options.out, console, Budget(started_s + TOTAL_S))
        publish(options.out, options.docs)
    except ExperimentError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return EXIT_FAILED
    except (ResultFileError, PageError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    console.print(f"\nthe standard set took {_clock(time.monotonic() - started_s)}", highlight=False)
    console.print(f"results: {options.out}\nwritten: {options.docs}", markup=False, highlight=False)
    return EXIT_OK


def run_set(url: str, out: Path, console: Console, budget: Budget) -> None:
    """Run every experiment of the set against the server at `url`, or one started there for the time of the set.

    Leaves NAME.json of each in `out`. Raises ExperimentError at the first that fails or takes too long.
    """
    out.mkdir(parents=True, exist_ok=True)
    with serving(url, console, START_LIMIT_S):
        for number, experiment in enumerate(STANDARD_SET, 1):
            limit_s = budget.limit_s(STANDARD_SET[number:])
            console.print(
                f"\n[bold]{number} of {len(STANDARD_SET)}: {experiment.name}[/bold], about "
                f"{_clock(experiment.planned_s)}; {_clock(budget.left_s())} of {_clock(TOTAL_S)} left",
                highlight=False,
            )
            run_experiment(experiment, url, out, limit_s)


def run_experiment(experiment: StandardExperiment, url: str, out: Path, limit_s: float) -> None:
    """Run one experiment in a process of its own. Raises ExperimentError if it fails or is not done in time."""
    result = _from_root(out / f"{experiment.name}.json")
    command = [sys.executable, "-m", "benchmarks.run", experiment.path, "--url", url, "--out", str(result)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL) as process:
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise ExperimentError(f"{experiment.name} was not done after {limit_s:.0f} s") from error
        finally:
            _end(process)
    if code:
        raise ExperimentError(f"{experiment.name} ended with code {code}; it says above why")


def publish(out: Path, docs: Path) -> None:
    """Make from the results in `out` all that is made from them: JSON lines, CSV, plots, one page, and the docs' part.

    `docs` is the Markdown page; it shows plots of `out`.
    """
    results = [read_result(out / f"{experiment.name}.json") for experiment in STANDARD_SET]
    drawn = [plots.draw(result) for result in results]
    parts = []
    for experiment, result, pictures in zip(STANDARD_SET, results, drawn, strict=True):
        exports.export(result, out)
        plots.write_plots(result, pictures, out)
        shown = [plot for plot in pictures if plot.name in experiment.shown_plots]
        parts.append(Part(experiment.title, experiment.shown_command, result, shown, experiment.with_stages))
    (out / "page.html").write_text(page.render(list(zip(results, drawn, strict=True))), encoding="utf-8")
    write_section(docs, parts, out)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, as Ctrl-C does at first."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(INTERRUPT_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _from_root(path: Path) -> Path:
    """Return a path below the repository from there, so that a result does not record where the repository lies."""
    absolute = path.absolute()
    return absolute.relative_to(REPOSITORY) if absolute.is_relative_to(REPOSITORY) else absolute


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.standard", description=__doc__)
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="the server; started where none runs (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "standard", metavar="DIR", help="folder of the results")
    parser.add_argument(
        "--docs", type=Path, default=REPOSITORY / "docs" / "benchmarks.md", metavar="FILE", help="the page to update"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
