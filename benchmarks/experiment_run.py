"""The loads of an experiment, run against a server one after another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from benchmarks import report, saturation, server_stages
from benchmarks.client import RequestClient
from benchmarks.connections import Connections
from benchmarks.experiment import (
    Experiment,
    ExperimentError,
    Load,
    RampLoad,
    ReplayLoad,
    SaturationLoad,
    SingleLoad,
)
from benchmarks.ingest_load import IngestLoad, read_documents
from benchmarks.load import Arrival, Limits, LoadGenerator
from benchmarks.load_run import LoadRun, RunId, describe_load
from benchmarks.measure import measured_window, stage_table, summarise
from benchmarks.saturation import Probe, Saturation
from benchmarks.sustained import find_broken_promises, find_overload, find_shortcomings
from benchmarks.trace_file import TracedRequest, read_trace

PROGRESS_INTERVAL_S = 0.25
# Looking through the samples takes time that the load generator needs.
OVERLOAD_CHECK_INTERVAL_S = 1.0


@dataclass(slots=True)
class Outcome:
    """Every run of every load, in the order in which they were made, and every saturation search."""

    runs: list[LoadRun] = field(default_factory=list)
    saturations: list[Saturation] = field(default_factory=list)


class ExperimentRun:
    """The loads of one experiment against one server, one after another. Reads all files it needs at once."""

    def __init__(self, experiment: Experiment, url: str, console: Console) -> None:
        """Raises ExperimentError where queries, trace or documents can't be read."""
        self._experiment = experiment
        self._url = url
        self._console = console
        self._limits = Limits(experiment.horizon_s, experiment.max_requests)
        self._bodies = [experiment.target.encode(query) for query in experiment.query_texts()]
        self._recorded = {load: self._arrivals(load) for load in experiment.loads if isinstance(load, ReplayLoad)}
        self._documents = [] if experiment.ingest is None else read_documents(Path(experiment.ingest.documents))
        self._outcome = Outcome()

    async def run(self) -> Outcome:
        """Run every load `repeats` times.

        The repeats go round the loads, rather than each load through its repeats, so that a drift of the machine meets
        all loads alike. Raises ExperimentError where the server is not there or refuses these requests.
        """
        await self._check_server()
        for repeat in range(self._experiment.repeats):
            for index, load in enumerate(self._experiment.loads):
                await self._run_load(load, index, repeat)
        return self._outcome

    async def _check_server(self) -> None:
        """Send one request ahead of the loads, so that a server that is not there is told of at once."""
        origin_s = time.perf_counter()
        async with Connections(self._url) as connections:
            sample = await self._client(connections).send(self._bodies[0], 0.0, lambda: time.perf_counter() - origin_s)
        if sample.error_kind == "connection":
            raise ExperimentError(f"no server at {self._url} ({sample.error}): start one, or name it with --url")
        if sample.error_kind in ("http_3xx", "http_4xx"):
            raise ExperimentError(f"{self._experiment.target.path} refuses the experiment's requests: {sample.error}")

    async def _run_load(self, load: Load, index: int, repeat: int) -> None:
        if isinstance(load, SaturationLoad):
            await self._search(load, index, repeat)
        elif isinstance(load, RampLoad):
            for step, open_load in enumerate(load.open_loads()):
                await self._measure(open_load, RunId(index, repeat, step))
        else:
            await self._measure(load, RunId(index, repeat))

    async def _search(self, load: SaturationLoad, index: int, repeat: int) -> None:
        async def try_rate(rate_per_s: float) -> Probe:
            run = await self._measure(load.probe(rate_per_s), RunId(index, repeat, next(steps), is_probe=True))
            return self._judge(run, load, rate_per_s)

        steps = iter(range(load.max_probes))
        found = await saturation.search(load, repeat, try_rate)
        self._outcome.saturations.append(found)
        report.print_saturation(self._console, f"{self._experiment.name}: {describe_load(load)}", found)

    def _judge(self, run: LoadRun, load: SaturationLoad, rate_per_s: float) -> Probe:
        if run.stopped is not None:
            faults = [f"stopped after {run.window.end_s:.1f} s: {run.stopped}"]
        else:
            faults = find_shortcomings(run.samples, run.window, load.criterion)
            faults += find_broken_promises(run.summary.goodput)
        latency = run.summary.latency
        p99_s = None if latency is None else latency.p99_s
        return Probe(rate_per_s, not faults, "; ".join(faults) or "sustained", run.summary.requests_per_s, p99_s)

    async def _measure(self, load: SingleLoad, run_id: RunId) -> LoadRun:
        """Run a load once, print what it gave, and keep it."""
        experiment = self._experiment
        seed = run_id.seed(experiment.seed)
        title = self._title(load, run_id)
        recorded = self._recorded[load] if isinstance(load, ReplayLoad) else ()
        async with Connections(self._url) as connections:
            before = await self._server_stages(connections)
            generator = LoadGenerator(self._client(connections), self._bodies, self._limits, seed)
            async with self._ingesting(connections, load) as ingest, self._watching(generator, title, run_id) as watch:
                samples = await generator.run(load, recorded)
            after = None if before is None else await self._server_stages(connections)
        window = measured_window(
            samples,
            warmup_s=experiment.warmup_s,
            horizon_s=experiment.horizon_s if generator.stopped_at_s is None else generator.stopped_at_s,
            max_requests=min(experiment.max_requests, len(recorded) or experiment.max_requests),
        )
        run = LoadRun(
            id=run_id,
            load=load,
            seed=seed,
            window=window,
            client_cpu_share=generator.client_cpu_share,
            summary=summarise(samples, window, experiment.slo, stream=experiment.stream),
            stages=stage_table(samples, window),
            ingest=None if ingest is None else ingest.summarise(window),
            server_stages=server_stages.difference(before, after),
            stopped=watch.overload,
            samples=samples,
        )
        report.print_run(self._console, title, run)
        self._outcome.runs.append(run)
        return run

    @contextlib.asynccontextmanager
    async def _ingesting(self, connections: Connections, load: SingleLoad) -> AsyncIterator[IngestLoad | None]:
        """Write documents for as long as the context lasts, where the experiment and the load say so."""
        if self._experiment.ingest is None or not load.with_ingest:
            yield None
            return
        ingest = IngestLoad(connections, self._experiment.ingest, self._documents)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ingest.run())
            try:
                yield ingest
            finally:
                ingest.stop()

    @contextlib.asynccontextmanager
    async def _watching(self, generator: LoadGenerator, title: str, run_id: RunId) -> AsyncIterator[_Watch]:
        """Show the load's progress for as long as the context lasts, and stop a probe that is clearly too much."""
        watch = _Watch(generator, self._experiment, may_stop=run_id.is_probe)
        with report.progress_bar(self._console) as progress:
            watcher = asyncio.create_task(watch.run(report.LoadProgress(progress, title, self._limits.horizon_s)))
            try:
                yield watch
            finally:
                watcher.cancel()

    async def _server_stages(self, connections: Connections) -> dict[str, server_stages.StageCounters] | None:
        return await server_stages.fetch(connections) if self._experiment.server_stages else None

    def _arrivals(self, load: ReplayLoad) -> Sequence[Arrival]:
        """Return the trace's arrivals at the load's speed."""
        trace = read_trace(Path(load.trace))
        last_s = trace[-1].at_s / load.speed
        if last_s < self._experiment.warmup_s:
            raise ExperimentError(
                f"the trace {load.trace} ends after {last_s:g} s, within the warm-up of {self._experiment.warmup_s:g} s"
            )
        return [self._arrival(request, load.speed) for request in trace]

    def _arrival(self, request: TracedRequest, speed: float) -> Arrival:
        body = None if request.query is None else self._experiment.target.encode(request.query)
        return Arrival(request.at_s / speed, body)

    def _client(self, connections: Connections) -> RequestClient:
        experiment = self._experiment
        return RequestClient(connections, experiment.target, timeout_s=experiment.timeout_s, stream=experiment.stream)

    def _title(self, load: SingleLoad, run_id: RunId) -> str:
        step = "" if run_id.step is None else f", {'probe' if run_id.is_probe else 'step'} {run_id.step + 1}"
        repeat = f"repeat {run_id.repeat + 1} of {self._experiment.repeats}"
        return f"{self._experiment.name}: {describe_load(load)}{step}, {repeat}"


class _Watch:
    """Looks at a load while it runs."""

    def __init__(self, generator: LoadGenerator, experiment: Experiment, *, may_stop: bool) -> None:
        self._generator = generator
        self._experiment = experiment
        self._may_stop = may_stop
        self.overload: str | None = None

    async def run(self, progress: report.LoadProgress) -> None:
        next_check_s = OVERLOAD_CHECK_INTERVAL_S
        while True:
            progress.show(self._generator.elapsed_s, len(self._generator.samples))
            if self._may_stop and self.overload is None and self._generator.elapsed_s >= next_check_s:
                self._stop_if_overloaded()
                next_check_s = self._generator.elapsed_s + OVERLOAD_CHECK_INTERVAL_S
            await asyncio.sleep(PROGRESS_INTERVAL_S)

    def _stop_if_overloaded(self) -> None:
        elapsed_s = self._generator.elapsed_s
        if elapsed_s >= self._experiment.horizon_s:
            return
        self.overload = find_overload(
            self._generator.samples,
            self._generator.num_in_flight,
            warmup_s=self._experiment.warmup_s,
            elapsed_s=elapsed_s,
            duration_s=self._experiment.duration_s,
        )
        if self.overload is not None:
            self._generator.stop()
