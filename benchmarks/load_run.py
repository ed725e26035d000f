"""One run of one load: what the result file keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.experiment import ClosedLoad, Load, OpenLoad, RampLoad, ReplayLoad, SaturationLoad, SingleLoad
from benchmarks.ingest_load import IngestSummary
from benchmarks.measure import StageSummary, Summary, Window
from benchmarks.records import Sample


@dataclass(frozen=True, slots=True)
class RunId:
    """Which run it is: `index` is the load's place in the experiment, `step` that within a ramp or of a probe."""

    index: int
    repeat: int
    step: int | None = None
    is_probe: bool = False

    def seed(self, experiment_seed: int) -> tuple[int, ...]:
        """Return the seed of the run's arrivals and queries, another one for every run of an experiment."""
        return (experiment_seed, self.index, self.repeat, *(() if self.step is None else (self.step,)))


@dataclass(frozen=True, slots=True)
class LoadRun:
    """`stopped` is why the run was ended early, None where it was not; `server_stages` is None where there are none."""

    id: RunId
    load: SingleLoad
    seed: tuple[int, ...]
    window: Window
    client_cpu_share: float
    summary: Summary
    stages: list[StageSummary]
    ingest: IngestSummary | None
    server_stages: list[dict[str, str | int | float]] | None
    stopped: str | None
    samples: Sequence[Sample]

    def to_json(self) -> dict[str, Any]:
        return {
            "load": self.load.model_dump(mode="json"),
            "step": self.id.step,
            "probe": self.id.is_probe,
            "repeat": self.id.repeat,
            "seed": list(self.seed),
            "window": asdict(self.window),
            "client_cpu_share": self.client_cpu_share,
            "summary": asdict(self.summary),
            "stages": [asdict(stage) for stage in self.stages],
            "ingest": None if self.ingest is None else asdict(self.ingest),
            "server_stages": self.server_stages,
            "stopped": self.stopped,
            "samples": [sample.to_json() for sample in self.samples],
        }


def describe_load(load: Load) -> str:
    """Name a load in the words of its file."""
    without = "" if load.with_ingest else ", without ingest"
    match load:
        case ClosedLoad():
            return f"closed loop, {load.clients} clients{without}"
        case OpenLoad():
            return f"open loop, {load.rate_per_s:.4g} requests/s, {load.arrivals} arrivals{without}"
        case ReplayLoad():
            return f"replay of {load.trace} at {load.speed:g} times its speed{without}"
        case RampLoad():
            return f"ramp from {load.from_rate_per_s:g} to {load.to_rate_per_s:g} requests/s{without}"
        case SaturationLoad():
            return f"saturation from {load.start_rate_per_s:g} requests/s{without}"


def label_load(load: SingleLoad) -> str:
    """Name a load in a few words, for a table."""
    match load:
        case ClosedLoad():
            label = f"{load.clients} client{'s' if load.clients > 1 else ''}"
        case OpenLoad():
            label = f"{load.rate_per_s:.4g}/s {load.arrivals}"
        case ReplayLoad():
            label = f"replay × {load.speed:g}"
    return label if load.with_ingest else f"{label}, no ingest"
