"""One closed loop against one server, and the numbers that it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.client import RequestClient
from benchmarks.connections import Connections
from benchmarks.experiment import ClosedLoad, Target
from benchmarks.load import Limits, LoadGenerator
from benchmarks.measure import StageSummary, Summary, Window, measured_window, stage_table, summarise


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """What is sent to `url`: the bodies over and over in a shuffled order, for `warmup_s` and then `duration_s`."""

    url: str
    target: Target
    bodies: Sequence[bytes]
    warmup_s: float
    duration_s: float
    timeout_s: float
    max_requests: int = 100_000


@dataclass(frozen=True, slots=True)
class Measured:
    """The window after the warm-up; `client_cpu_share` is the part of one core that the clients took until its end."""

    window: Window
    summary: Summary
    stages: Sequence[StageSummary]
    client_cpu_share: float


async def measure(loop: ClosedLoop, load: ClosedLoad, seed: Sequence[int]) -> Measured:
    """Run the loop with as many clients as the load has; the same seed gives the same order."""
    limits = Limits(loop.warmup_s + loop.duration_s, loop.max_requests)
    async with Connections(loop.url) as connections:
        client = RequestClient(connections, loop.target, timeout_s=loop.timeout_s)
        generator = LoadGenerator(client, loop.bodies, limits, seed)
        samples = await generator.run(load)
    window = measured_window(
        samples, warmup_s=loop.warmup_s, horizon_s=limits.horizon_s, max_requests=limits.max_requests
    )
    return Measured(window, summarise(samples, window), stage_table(samples, window), generator.client_cpu_share)
