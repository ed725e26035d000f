"""`python -m benchmarks.run EXPERIMENT`: run the loads of one experiment file and write one result file."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import environment, report, result_file
from benchmarks.client import RequestClient
from benchmarks.connections import Connections, is_loopback
from benchmarks.experiment import Experiment, ExperimentError, Load, OpenLoad, read_experiment
from benchmarks.load import Limits, LoadGenerator
from benchmarks.measure import measured_window, stage_table, summarise
from benchmarks.records import Sample

PROGRESS_INTERVAL_S = 0.25

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
        loads = ExperimentRun(experiment, options.url, console)
        result = {
            "schema_version": result_file.SCHEMA_VERSION,
            "command": shlex.join(["python", "-m", "benchmarks.run", *arguments]),
            "experiment": experiment.model_dump(mode="json"),
            "seed": experiment.seed,
            "url": options.url,
            **environment.describe(),
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "loads": asyncio.run(loads.run()),
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


class ExperimentRun:
    """The loads of one experiment against one server, one after another."""

    def __init__(self, experiment: Experiment, url: str, console: Console) -> None:
        self._experiment = experiment
        self._url = url
        self._console = console
        self._bodies = [experiment.target.encode(query) for query in experiment.query_texts()]

    async def run(self) -> list[dict[str, Any]]:
        """Run every load `repeats` times and return the result file's `loads`.

        The repeats go round the loads, rather than each load through its repeats, so that a drift of the machine meets
        all loads alike. Raises ExperimentError where the server is not there or refuses these requests.
        """
        await self._check_server()
        experiment = self._experiment
        return [
            await self._run_load(load, (experiment.seed, index, repeat))
            for repeat in range(experiment.repeats)
            for index, load in enumerate(experiment.loads)
        ]

    async def _check_server(self) -> None:
        """Send one request ahead of the loads, so that a server that is not there is told of at once."""
        origin_s = time.perf_counter()
        async with Connections(self._url) as connections:
            sample = await self._client(connections).send(self._bodies[0], 0.0, lambda: time.perf_counter() - origin_s)
        if sample.error_kind == "connection":
            raise ExperimentError(f"no server at {self._url} ({sample.error}): start one, or name it with --url")
        if sample.error_kind in ("http_3xx", "http_4xx"):
            raise ExperimentError(f"{self._experiment.target.path} refuses the experiment's requests: {sample.error}")

    async def _run_load(self, load: Load, seed: tuple[int, int, int]) -> dict[str, Any]:
        experiment = self._experiment
        title = f"{experiment.name}: {describe_load(load)}, repeat {seed[2] + 1} of {experiment.repeats}"
        samples, client_cpu_share = await self._drive(load, seed, title)
        window = measured_window(
            samples,
            warmup_s=experiment.warmup_s,
            horizon_s=experiment.horizon_s,
            max_requests=experiment.max_requests,
        )
        summary = summarise(samples, window)
        stages = stage_table(samples, window)
        report.print_run(self._console, title, summary, stages, client_cpu_share)
        return {
            "load": load.model_dump(mode="json"),
            "repeat": seed[2],
            "seed": list(seed),
            "window": asdict(window),
            "client_cpu_share": client_cpu_share,
            "summary": asdict(summary),
            "stages": [asdict(stage) for stage in stages],
            "samples": [sample.to_json() for sample in samples],
        }

    async def _drive(self, load: Load, seed: tuple[int, int, int], title: str) -> tuple[list[Sample], float]:
        """Return the load's samples and the share of one core that this process used while it ran."""
        limits = Limits(self._experiment.horizon_s, self._experiment.max_requests)
        async with Connections(self._url) as connections:
            generator = LoadGenerator(self._client(connections), self._bodies, limits, seed)
            started_s, started_cpu_s = time.perf_counter(), time.process_time()
            with report.progress_bar(self._console) as progress:
                watcher = asyncio.create_task(_watch(generator, limits.horizon_s, title, progress))
                try:
                    samples = await generator.run(load)
                finally:
                    watcher.cancel()
            return samples, (time.process_time() - started_cpu_s) / (time.perf_counter() - started_s)

    def _client(self, connections: Connections) -> RequestClient:
        experiment = self._experiment
        return RequestClient(connections, experiment.target, timeout_s=experiment.timeout_s, stream=experiment.stream)


async def _watch(generator: LoadGenerator, horizon_s: float, title: str, progress: Progress) -> None:
    task = progress.add_task(title, total=horizon_s, note="")
    started_s = time.perf_counter()
    while True:
        elapsed_s = time.perf_counter() - started_s
        note = f"{len(generator.samples)} answered" if elapsed_s < horizon_s else "waiting for the last answers"
        progress.update(task, completed=min(elapsed_s, horizon_s), note=note)
        await asyncio.sleep(PROGRESS_INTERVAL_S)


def describe_load(load: Load) -> str:
    """Name a load in the words of its file."""
    if isinstance(load, OpenLoad):
        return f"open loop, {load.rate_per_s:g} requests/s, {load.arrivals} arrivals"
    return f"closed loop, {load.clients} clients"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("experiment", type=Path, help="a file of benchmarks/experiments")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--queries", metavar="FILE", help="JSONL with _id and text, instead of the experiment's own")
    parser.add_argument("--duration-s", metavar="S", type=float, help="seconds to measure, instead of the experiment's")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/NAME-UTC.json)")
    parser.add_argument("--allow-remote", action="store_true", help="allow a server that is not on this machine")
    return parser.parse_args(arguments)


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line puts in place of the experiment file's own keys."""
    given = {"queries": options.queries, "duration_s": options.duration_s}
    return {key: value for key, value in given.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
