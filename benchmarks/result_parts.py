"""What a result file of `benchmarks.run` consists of, as typed values: loads, runs, medians, searches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Family = Literal["closed", "open"]


class ResultPart(BaseModel):
    """A frozen part of the file. Keys that nothing here needs are passed over, so that a file may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Load(ResultPart):
    """One load as it was run. `rate_per_s` is that of an open load, `speed` how much faster a trace was replayed."""

    model_config = ConfigDict(extra="allow")

    kind: str
    clients: int | None = None
    rate_per_s: float | None = None
    arrivals: str | None = None
    trace: str | None = None
    speed: float | None = None
    with_ingest: bool = True

    @property
    def family(self) -> Family:
        """Whether users wait for their answers (`closed`) or requests come at times of their own (`open`)."""
        return "closed" if self.kind == "closed" else "open"

    @property
    def label(self) -> str:
        """A few words that tell this load from the others of its file."""
        return self._words() if self.with_ingest else f"{self._words()}, without ingest"

    def _words(self) -> str:
        if self.clients is not None:
            return f"{self.clients} client{'' if self.clients == 1 else 's'}"
        if self.rate_per_s is not None:
            return f"{self.rate_per_s:.4g}/s {self.arrivals or ''}".rstrip()
        name = PurePath(self.trace).name if self.trace else ""
        return " ".join(part for part in (self.kind, name, f"× {self.speed:g}" if self.speed else "") if part)


class Quantiles(ResultPart):
    """Times in seconds."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float

    @staticmethod
    def medians(several: Iterable[Quantiles | None]) -> Quantiles | None:
        """Of each time the median over those that have it; None where none has."""
        known = [one for one in several if one is not None]
        if not known:
            return None
        return Quantiles(**{name: median(getattr(one, name) for one in known) for name in Quantiles.model_fields})


class Distribution(Quantiles):
    """Times in seconds, and how many there were."""

    count: int
    max_s: float


class StageTotals(ResultPart):
    """One stage in one run. Times are seconds for each call, shares are of the stage's total time, 0 to 1."""

    stage: str
    total: Distribution
    mean_queue_s: float
    mean_batch_wait_s: float
    mean_compute_s: float
    queue_share: float
    batch_wait_share: float
    compute_share: float
    mean_batch_size: float


class Goodput(ResultPart):
    """The requests that kept the SLO, whose limits are seconds; `within` has a share for each limit that applies."""

    slo: dict[str, float | None]
    good: int
    good_share: float
    good_per_s: float
    within: dict[str, float] | None = None
    met: bool

    @property
    def promise(self) -> str:
        """The limits that apply, as a phrase."""
        limits = {name: limit for name, limit in self.slo.items() if self.within is None or name in self.within}
        names = {"request_p99_s": "whole request", "ttft_s": "TTFT", "itl_s": "ITL"}
        kept = ((names.get(name, name), limit) for name, limit in limits.items() if limit is not None)
        return ", ".join(f"{name} ≤ {limit * 1e3:,.4g} ms" for name, limit in kept)


class Summary(ResultPart):
    """What `benchmarks.measure.Summary` says of one run.

    `errors` counts by kind, `degraded` the answers by the stage that they did without: None where a file says nothing.
    """

    num_requests: int
    num_succeeded: int
    num_failed: int
    shed: int = 0
    timeouts: int = 0
    requests_per_s: float
    offered_per_s: float
    errors: dict[str, int]
    degraded: dict[str, int] | None = None
    latency: Distribution | None = None
    start_delay: Distribution | None = None
    ttft: Distribution | None = None
    inter_token: Distribution | None = None
    goodput: Goodput | None = None


class Ingest(ResultPart):
    """The documents that were written while the questions were asked."""

    documents: int
    batches: int
    documents_per_s: float
    errors: dict[str, int]


class Window(ResultPart):
    """The measured part of a run, in seconds since its start."""

    start_s: float
    end_s: float


class Run(ResultPart):
    """One run of one load. `samples` holds its requests as the file does, those of the warm-up included."""

    load: Load
    step: int | None = None
    repeat: int
    probe: bool = False
    seed: tuple[int, ...]
    window: Window
    client_cpu_share: float
    summary: Summary
    stages: tuple[StageTotals, ...]
    ingest: Ingest | None = None
    samples: tuple[dict[str, Any], ...]


class StageMedians(ResultPart):
    """One stage, medians over the repeats. Times are seconds for each call, shares are 0 to 1."""

    stage: str
    mean_s: float
    p50_s: float
    p99_s: float
    queue_share: float
    batch_wait_share: float
    compute_share: float
    mean_batch_size: float

    @classmethod
    def of_runs(cls, runs: Sequence[StageTotals]) -> StageMedians:
        """The medians over one run at least of the same stage."""
        return cls(
            stage=runs[0].stage,
            mean_s=median(run.total.mean_s for run in runs),
            p50_s=median(run.total.p50_s for run in runs),
            p99_s=median(run.total.p99_s for run in runs),
            queue_share=median(run.queue_share for run in runs),
            batch_wait_share=median(run.batch_wait_share for run in runs),
            compute_share=median(run.compute_share for run in runs),
            mean_batch_size=median(run.mean_batch_size for run in runs),
        )

    @property
    def wait_s(self) -> float:
        """How long a call of this stage waits before anything is computed for it, mean."""
        return self.mean_s * (self.queue_share + self.batch_wait_share)


class Medians(ResultPart):
    """One load, or one step of it, medians over its repeats; a `probe` stands for the probes of one rate."""

    load: Load
    step: int | None = None
    probe: bool = False
    repeats: int
    requests_per_s: float
    good_per_s: float | None = None
    latency: Quantiles | None = None
    ttft: Quantiles | None = None
    inter_token: Quantiles | None = None
    stages: tuple[StageMedians, ...]

    @property
    def bottleneck(self) -> StageMedians | None:
        """The stage whose calls wait longest; None where no stage reports."""
        return max(self.stages, key=lambda stage: stage.wait_s, default=None)


class Probe(ResultPart):
    """One rate that a saturation search tried."""

    rate_per_s: float
    passed: bool
    reason: str | None = None
    requests_per_s: float | None = None
    p99_s: float | None = None


class Saturation(ResultPart):
    """What a saturation search found: the highest rate that passed, None or 0 if none did, and what ended it."""

    load: Load
    max_rate_per_s: float | None = None
    limit: str | None = None
    probes: tuple[Probe, ...]
